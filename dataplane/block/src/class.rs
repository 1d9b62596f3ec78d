//! What a block is good for, and why one went.
//!
//! The order of classes is the order of worth: what many turns share before what one turn made,
//! and what nobody can come back to last. What was said last and what was answered are worth as much
//! as the turns before them, for the next turn repeats all three: were they worth less, the end of
//! each conversation would go before another's stale beginning. A client's own ranges win over a
//! class's defaults.

/// What a stretch of a prompt or answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Nobody said.
    Plain,
    /// A tenant's or a harness's system prompt: every session begins with it.
    System,
    /// Definitions of tools: as shared as the system prompt, but they change more often.
    Tools,
    /// Turns that were, which every turn to come repeats.
    History,
    /// What was said last.
    UserTurn,
    /// What was answered.
    Output,
    /// Thoughts and what follows them until their loop of calls is over: most templates drop thoughts then, and a
    /// chain of blocks is another one from the first that is dropped.
    Reasoning,
    /// A request beside the conversation, such as a title: nothing follows it.
    Side,
    /// The history of a subagent whose result was taken.
    Finished,
    /// A history that a summary has replaced.
    Compacted,
}

/// What a class gets where nobody says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// While it lives.
    pub priority: u8,
    /// Once its time is over.
    pub after: u8,
    /// How long that is. Every class has an end, so that nothing of a session that nobody ends is claimed for ever.
    pub duration_ms: u64,
}

const MINUTE_MS: u64 = 60_000;

impl Class {
    /// How many there are.
    pub const COUNT: usize = 10;

    /// All of them, each at its own number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Plain,
        Self::System,
        Self::Tools,
        Self::History,
        Self::UserTurn,
        Self::Output,
        Self::Reasoning,
        Self::Side,
        Self::Finished,
        Self::Compacted,
    ];

    /// The name in figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::System => "system",
            Self::Tools => "tools",
            Self::History => "history",
            Self::UserTurn => "user_turn",
            Self::Output => "output",
            Self::Reasoning => "reasoning",
            Self::Side => "side",
            Self::Finished => "finished",
            Self::Compacted => "compacted",
        }
    }

    /// What it gets where nobody says more.
    #[must_use]
    pub const fn defaults(self) -> Defaults {
        let (priority, after, minutes) = match self {
            Self::Plain => (super::PRIORITY_DEFAULT, super::PRIORITY_DEFAULT, 10),
            Self::System => (90, 60, 60),
            Self::Tools => (85, 55, 60),
            Self::History => (60, 35, 10),
            Self::UserTurn => (60, 35, 10),
            Self::Output => (60, 35, 10),
            Self::Reasoning => (20, 5, 5),
            Self::Side => (5, 0, 1),
            Self::Finished | Self::Compacted => (0, 0, 0),
        };
        Defaults { priority, after, duration_ms: minutes * MINUTE_MS }
    }

    pub(crate) fn from_number(number: u16) -> Self {
        Self::ALL.get(number as usize).copied().unwrap_or(Self::Plain)
    }
}

/// How a lease ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// Its owner makes no claim any more; the blocks stay like any others.
    Released,
    /// Its owner will not come back.
    Finished,
    /// A summary has replaced what it named.
    Compacted,
}

/// Why a block was evicted: what had set its priority, or who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// Room was needed, and it was the least of those that may go.
    Capacity,
    /// The same, after a lease had run out.
    Expiry,
    /// The same, after its session had ended or was compacted.
    Lifecycle,
    /// Its tenant needed room within the tenant's own budget.
    TenantBudget,
    /// Somebody emptied the pool.
    Reset,
}

impl Cause {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// All of them, each at its own number.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Capacity, Self::Expiry, Self::Lifecycle, Self::TenantBudget, Self::Reset];

    /// The name in figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Expiry => "expiry",
            Self::Lifecycle => "lifecycle",
            Self::TenantBudget => "tenant_budget",
            Self::Reset => "reset",
        }
    }
}
