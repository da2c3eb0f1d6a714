"""Images, data set layouts, sampling of batches and pairs, and the comparison prompt."""
