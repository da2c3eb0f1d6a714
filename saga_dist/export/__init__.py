"""The encoder as a product: folders that other software reads, and the commands around them."""
