# CrossVLT with the versions of requirements.lock, for CPUs and NVIDIA GPUs; no data, and no weights but the small network's.
#
#     docker build -t crossvlt .
#
# docs/clusters.md has the commands that run it. PIP_INDEX_URL and PIP_EXTRA_INDEX_URL name other package indexes, such as
# one with builds for CPUs alone; PACKAGES are more packages of Debian, such as g++ for --compile.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG PACKAGES
RUN if [ -n "$PACKAGES" ]; then apt-get update && apt-get install -y --no-install-recommends $PACKAGES \
    && rm -rf /var/lib/apt/lists/*; fi

# Before the code, whose changes need no new installation.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
WORKDIR /crossvlt
COPY requirements.txt requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock --requirement requirements.txt

COPY . .
RUN python -m compileall -q .

# Not root, and any other number will do as well (docker run --user): a name and a home that everybody may write to.
RUN useradd --uid 1000 --create-home crossvlt && chmod 1777 /home/crossvlt
ENV HOME=/home/crossvlt USER=crossvlt
USER 1000
CMD ["python", "train.py", "--help"]
