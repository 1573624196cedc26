"""What an adapter imports."""
