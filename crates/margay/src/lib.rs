//! Ask a picture a question: load a model, open a session, stream the answer.
