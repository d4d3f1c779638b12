"""Features, distances between sets of images, and a linear SVM."""
