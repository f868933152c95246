"""The rules that come with partsum, one kind of module a file."""
