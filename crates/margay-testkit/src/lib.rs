//! Shared test material: op cases, tolerances, golden files. Never shipped.
