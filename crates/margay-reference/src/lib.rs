//! The meaning of every op: executes and differentiates a Program with candle in float32.
