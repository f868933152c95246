"""Generated from partsum.proto beside it by protos/generate.sh."""
