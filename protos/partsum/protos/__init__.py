"""The protocol between coordinator and node."""
