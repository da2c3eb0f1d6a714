"""Images, data set layouts, sampling of micro-batches and pairs, and the comparison prompt."""
