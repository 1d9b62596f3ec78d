//! The closed list of error codes that HTTP, gRPC and the C ABI share: the canonical gRPC names.

/// What went wrong, coarsely enough that a program can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The caller's arguments are wrong, whatever the state of the system.
    InvalidArgument,
    /// No such thing.
    NotFound,
    /// The thing exists already.
    AlreadyExists,
    /// The credential does not allow it.
    PermissionDenied,
    /// A quota, queue or memory is full; try later or ask for less.
    ResourceExhausted,
    /// The system's state forbids it, for example a stale epoch.
    FailedPrecondition,
    /// A concurrent change won.
    Aborted,
    /// Not built.
    Unimplemented,
    /// A fault of ours.
    Internal,
    /// Nobody can serve this now; try again.
    Unavailable,
    /// No credential, or an unknown one.
    Unauthenticated,
    /// Time ran out.
    DeadlineExceeded,
}

impl ErrorCode {
    /// The gRPC number, whose negative is the C ABI's code.
    #[must_use]
    pub const fn grpc(self) -> i32 {
        match self {
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::FailedPrecondition => 9,
            Self::Aborted => 10,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::Unauthenticated => 16,
        }
    }

    /// The snake-case name shown to people and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::PermissionDenied => "permission_denied",
            Self::ResourceExhausted => "resource_exhausted",
            Self::FailedPrecondition => "failed_precondition",
            Self::Aborted => "aborted",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}
