//! Block formats: numbers in, blocks out.
