//! The remote engine over doubles of the servers that it knows, and over a real one where there is one.

mod doubles;
mod faults;
mod kit;
mod real_server;
