"""Reserved for the Keras adapter: this release has none, so nothing can be imported from here."""
