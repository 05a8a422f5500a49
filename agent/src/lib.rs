//! Fine-Grained Monitor: a flight recorder for containers.
//!
//! The library behind the binary `fgm`; its tests use it too. The way of the data, in the order of the files, is in
//! ARCHITECTURE.md.

pub mod clock;
pub mod event;
pub mod names;
pub mod probes;
