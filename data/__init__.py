"""Reading, transforming and making the data: images, sentences and the masks of the objects they mean."""
