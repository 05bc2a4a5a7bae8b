"""The inference daemon: serves installed bundles over the Open Inference Protocol."""
