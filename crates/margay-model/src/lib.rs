//! Model families: describe a model as Programs over named weights.
