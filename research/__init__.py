"""The laboratory: what is compared, measured and tried; it imports `sacl` and nobody imports it."""
