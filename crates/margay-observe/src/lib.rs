//! Clocks, stage spans and process memory: the only room that reads a clock or /proc.
