//! Why a worker does not start or does not go on.
//!
//! The reasons are text and the error is `Clone`, since every waiter on one worker is told the same end.

/// What ends a worker, or keeps it from starting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// The configuration can never work.
    #[error("worker configuration: {0}")]
    Config(String),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {reason}; choose another with --listen")]
    Listen {
        /// What was asked for.
        address: String,
        /// The system's words.
        reason: String,
    },
    /// No control member took the registration in time.
    #[error(
        "the control plane does not take this worker: {0}; check --control and `mainstay status`"
    )]
    Control(String),
    /// The engine did not open.
    #[error("the engine does not start: {0}")]
    Engine(String),
    /// The engine crashed too often.
    #[error("the engine ended {restarts} times in a row and is given up: {reason}")]
    EngineGone {
        /// How many restarts were tried.
        restarts: u32,
        /// The last end.
        reason: String,
    },
    /// The operating system refused something that a running worker needs.
    #[error("worker: {0}")]
    System(String),
}
