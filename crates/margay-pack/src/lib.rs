//! Convert a checkpoint into a model file: convert, quantize, write.
