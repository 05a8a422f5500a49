//! Fine-Grained Monitor.
