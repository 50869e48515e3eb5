"""Files of images, volumes and labels, and what is done to their arrays."""
