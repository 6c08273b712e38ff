//! The waist: the op vocabulary, programs, shapes, passes, memory plan and the Backend trait.
