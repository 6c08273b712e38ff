//! A user's message to token ids and pixel tensors, and tokens back to text.
