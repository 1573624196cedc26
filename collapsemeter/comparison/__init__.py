"""One report beside another."""
