"""Reserved for the Flax adapter: this release has none, so nothing can be imported from here."""
