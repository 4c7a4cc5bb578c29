"""Images: catalog, splits and pixels."""
