//! Vision towers: pixels to patch features.

pub(crate) mod vit;
