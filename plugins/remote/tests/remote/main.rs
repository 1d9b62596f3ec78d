//! The remote engine over doubles of the servers that it knows.

mod doubles;
mod faults;
mod kit;
