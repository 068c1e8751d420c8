() => {
  const find = (selector) => document.querySelector(selector);
  window.crossvlt = {
    // On a narrow screen the answer may be out of sight.
    showAnswer() {
      const { top } = find("#answer").getBoundingClientRect();
      if (top < 0 || top > innerHeight / 2) find("#answer").scrollIntoView();
    },
    anotherLine(text) {
      setTimeout(() => find("#text textarea").focus());
      return text.trim() ? text.trimEnd() + "\n" : text;
    },
  };
  // Screen readers read answers when they come.
  for (const place of ["#verdict", "#words"]) find(place).setAttribute("aria-live", "polite");
  // They read the caption of a tile instead of its number.
  const name = () => {
    for (const tile of document.querySelectorAll("#tries button, #examples button")) {
      const caption = tile.querySelector(".caption-label")?.innerText;
      if (caption && tile.getAttribute("aria-label") !== caption) tile.setAttribute("aria-label", caption);
    }
  };
  new MutationObserver(name).observe(find("#layout"), { childList: true, subtree: true });
  name();
}
