//! Session identity, read from what harnesses already send.
//!
//! No harness changes a line for us: Claude Code, Codex, opencode and load generators name their
//! sessions in headers or metadata, each in its own words. They are mapped to one form here.
//! Identity is a claim, not a credential: the caller scopes it by tenant before any decision
//! hangs on it. A request that names nothing is normal and has no session.

use serde_json::Value;

use crate::hints::HeaderHints;
use crate::limits::{CLIENT_BYTES_MAX, HEADER_JSON_BYTES_MAX, ID_BYTES_MAX};
use crate::request::Request;

/// Whose request this is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionIds {
    /// The program that named itself, if known.
    pub harness: Harness,
    /// Where the ids come from, hence how far to trust them.
    pub source: SessionSource,
    /// The session.
    pub session: Option<String>,
    /// The agent within it; absent for a session's main agent.
    pub agent: Option<String>,
    /// Who started this agent, if that was told.
    pub parent: Option<String>,
    /// Whether the request comes from a subagent.
    pub is_subagent: bool,
    /// Whether the client says that the session ends with this request.
    pub session_final: bool,
    /// What the request is for.
    pub kind: RequestKind,
    /// The harness's id of the turn.
    pub turn: Option<String>,
    /// The harness's id of its context window: a new one after compaction.
    pub context_window: Option<String>,
    /// Counts the context windows of a session: one more after compaction.
    pub window: Option<u64>,
    /// The session or thread this one was forked from.
    pub forked_from: Option<String>,
    /// The member or header that named the session.
    pub named_by: Option<&'static str>,
    /// The program and its version, as it calls itself.
    pub client: Option<String>,
}

impl SessionIds {
    /// The id under which this line of conversation goes on: the agent's, else the session's.
    pub fn key(&self) -> Option<&str> {
        self.agent.as_deref().or(self.session.as_deref())
    }

    /// The [`key`](SessionIds::key) of whoever started this agent.
    pub fn parent_key(&self) -> Option<&str> {
        let of_session = self.session.as_deref().filter(|_| self.agent.is_some());
        self.parent.as_deref().or(of_session).filter(|parent| Some(*parent) != self.key())
    }

    /// Takes what Codex says in the body over its headers, where both are of one session: a connection keeps the
    /// headers of its first request, which may have been of another thread and another kind.
    fn prefer_body(&mut self, body: &SessionIds) {
        if body.harness == Harness::Codex && body.session.is_some() && body.session == self.session
        {
            let of_headers = std::mem::replace(self, body.clone());
            (self.source, self.named_by) = (of_headers.source, of_headers.named_by);
            if self.agent == of_headers.agent {
                fill(&mut self.parent, &of_headers.parent);
                self.is_subagent |= of_headers.is_subagent;
            }
        }
    }
}

/// The program behind a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Harness {
    /// Not one we know.
    #[default]
    Unknown,
    /// Claude Code.
    ClaudeCode,
    /// Codex.
    Codex,
    /// opencode.
    OpenCode,
}

impl Harness {
    /// Its name in answers; `None` for one we don't know.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Harness::Unknown => None,
            Harness::ClaudeCode => Some("claude-code"),
            Harness::Codex => Some("codex"),
            Harness::OpenCode => Some("opencode"),
        }
    }
}

/// Where identity comes from, weakest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SessionSource {
    /// Nothing was told.
    #[default]
    None,
    /// `metadata.user_id`, `prompt_cache_key` or a correlation id.
    Inferred,
    /// Headers the harness sends by itself.
    Harness,
    /// `x-dynamo-*` headers or `nvext`.
    Explicit,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestKind {
    /// A turn, as far as is known.
    #[default]
    Turn,
    /// Summarises the history, which is dead afterwards.
    Compaction,
    /// Asks something beside the conversation, or only warms its cache.
    Side,
}

/// Identity found in a body, kept until the headers are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct BodyIdentity {
    /// From `nvext`.
    pub(crate) explicit: SessionIds,
    /// From `metadata.user_id`, `prompt_cache_key`, `client_metadata`.
    pub(crate) inferred: SessionIds,
}

impl BodyIdentity {
    /// The identity before any header is known.
    pub(crate) fn resolve(&mut self) -> SessionIds {
        self.explicit.source = SessionSource::Explicit;
        self.inferred.source = SessionSource::Inferred;
        resolve([&self.explicit, &self.inferred])
    }
}

/// Takes ids from the strongest candidate that has a session, and each other fact from the
/// strongest that has it: ids of two sources never mix, since they name different things.
fn resolve<'a>(candidates: impl IntoIterator<Item = &'a SessionIds> + Clone) -> SessionIds {
    let strongest = candidates.clone().into_iter().find(|c| c.session.is_some());
    let mut resolved = strongest.cloned().unwrap_or_default();
    for other in candidates {
        if resolved.harness == Harness::Unknown {
            resolved.harness = other.harness;
        }
        if resolved.kind == RequestKind::Turn {
            resolved.kind = other.kind;
        }
        resolved.is_subagent |= other.is_subagent;
        resolved.session_final |= other.session_final;
        fill(&mut resolved.turn, &other.turn);
        fill(&mut resolved.context_window, &other.context_window);
        resolved.window = resolved.window.or(other.window);
        fill(&mut resolved.forked_from, &other.forked_from);
    }
    resolved.is_subagent |= resolved.parent_key().is_some();
    resolved
}

fn fill(to: &mut Option<String>, from: &Option<String>) {
    if to.is_none() {
        to.clone_from(from);
    }
}

pub(crate) fn apply_headers<'h>(
    request: &mut Request,
    headers: impl IntoIterator<Item = (&'h str, &'h str)>,
) {
    let mut found = HeaderIdentity::default();
    for (name, value) in headers {
        found.header(&name.to_ascii_lowercase(), value.trim());
    }
    found.settle();
    found.native.prefer_body(&request.body_identity.inferred);
    found.hints.apply(request);
    let body = &request.body_identity;
    let mut ids =
        resolve([&found.explicit, &body.explicit, &found.native, &body.inferred, &found.weak]);
    ids.client = found.client;
    request.session = ids;
    if found.explicit.session_final {
        request.uses.used("x-dynamo-session-final");
    }
}

/// What headers say, by strength.
#[derive(Default)]
struct HeaderIdentity {
    explicit: SessionIds,
    native: SessionIds,
    weak: SessionIds,
    client: Option<String>,
    hints: HeaderHints,
}

impl HeaderIdentity {
    fn header(&mut self, name: &str, value: &str) {
        let id = || id(value);
        let native = &mut self.native;
        match name {
            "x-dynamo-session-id" => {
                self.explicit.session = id();
                self.explicit.named_by = Some("x-dynamo-session-id");
            }
            "x-dynamo-parent-session-id" => self.explicit.parent = id(),
            "x-dynamo-session-final" => {
                self.explicit.session_final = matches!(value, "1" | "true" | "True");
            }
            "x-claude-code-session-id" => {
                native.harness = Harness::ClaudeCode;
                native.session = id();
                native.named_by = Some("x-claude-code-session-id");
            }
            "x-claude-code-agent-id" => native.agent = id(),
            "x-claude-code-parent-agent-id" => native.parent = id(),
            "x-claude-code-compaction" if !matches!(value, "" | "0" | "false") => {
                native.kind = RequestKind::Compaction;
            }
            "session-id" => {
                native.harness = Harness::Codex;
                native.session = id();
                native.named_by = Some("session-id");
            }
            "thread-id" => native.agent = id(),
            "x-codex-parent-thread-id" => native.parent = id(),
            "x-openai-subagent" => native.is_subagent = true,
            "x-codex-turn-metadata" => read_codex_metadata(value, native),
            "x-codex-window-id" => {
                let number = value.rsplit_once(':').and_then(|(_, number)| number.parse().ok());
                native.window = native.window.or(number);
            }
            // A session's own header wins over the affinity one that repeats it.
            "x-session-id" => {
                native.session = id();
                native.harness = Harness::OpenCode;
                native.named_by = Some("x-session-id");
            }
            "x-parent-session-id" => native.parent = id(),
            "session_id" => self.weakly("session_id", id()),
            "x-session-affinity" => self.weakly("x-session-affinity", id()),
            "x-smg-routing-key" => self.weakly("x-smg-routing-key", id()),
            "x-correlation-id" => self.weakly("x-correlation-id", id()),
            "user-agent" => {
                // The first word is the program and its version; the rest is about its machine.
                let product = value.split(' ').next().unwrap_or_default();
                self.client = session_client(product);
            }
            _ => self.hints.header(name, value),
        }
    }

    /// A name that somebody gave for another purpose: the first one counts.
    fn weakly(&mut self, by: &'static str, id: Option<String>) {
        if self.weak.session.is_none() && id.is_some() {
            self.weak.session = id;
            self.weak.named_by = Some(by);
        }
    }

    fn settle(&mut self) {
        self.explicit.source = SessionSource::Explicit;
        self.native.source = SessionSource::Harness;
        self.weak.source = SessionSource::Inferred;
        let prefix = self.hints.prefix_id().map(str::to_owned);
        self.weakly("x-prefix-id", prefix);
        // Load generators use the header that opencode does.
        let client = self.client.as_deref();
        if self.native.harness == Harness::OpenCode
            && client.is_some_and(|client| !client.starts_with("opencode"))
        {
            self.native.harness = Harness::Unknown;
        }
        // Codex names the main thread like its session: that is no agent of its own.
        if self.native.agent == self.native.session {
            self.native.agent = None;
        }
    }
}

/// Reads Codex's turn metadata, a JSON object in a header (and in `client_metadata`).
pub(crate) fn read_codex_metadata(text: &str, ids: &mut SessionIds) {
    if text.len() > HEADER_JSON_BYTES_MAX {
        return;
    }
    let Ok(Value::Object(members)) = crate::plain_json::from_str(text) else { return };
    let get = |name: &str| members.get(name).and_then(Value::as_str).and_then(id);
    ids.kind = match members.get("request_kind").and_then(Value::as_str) {
        Some("turn") | None => ids.kind,
        Some("compaction") => RequestKind::Compaction,
        Some(_) => RequestKind::Side,
    };
    ids.window = members.get("window_number").and_then(Value::as_u64).or(ids.window);
    ids.is_subagent |= members.get("thread_source").and_then(Value::as_str) == Some("subagent");
    ids.turn = get("turn_id");
    ids.context_window = get("context_window_id");
    ids.forked_from = get("forked_from_thread_id");
    if ids.session.is_none() {
        ids.session = get("session_id");
        ids.named_by = ids.session.is_some().then_some("x-codex-turn-metadata");
    }
    ids.harness = Harness::Codex;
    fill(&mut ids.agent, &get("thread_id"));
    fill(&mut ids.parent, &get("parent_thread_id"));
}

/// A program's own name, cut to what is worth showing.
fn session_client(product: &str) -> Option<String> {
    let fits = product.len() <= CLIENT_BYTES_MAX && product.bytes().all(|b| b.is_ascii_graphic());
    (fits && !product.is_empty()).then(|| product.to_owned())
}

/// A value that can serve as an id: short and printable.
pub(crate) fn id(value: &str) -> Option<String> {
    let fits = (1..=ID_BYTES_MAX).contains(&value.len());
    (fits && value.chars().all(|c| !c.is_control())).then(|| value.to_owned())
}

#[cfg(test)]
mod tests;
