//! The thread that compiles forms.
//!
//! A schema may take as long as a hundred steps to compile, and the first one waits for the vocabulary
//! too; requests without a form shall not notice. One at a time, in the order they came: a client that
//! sends costly schemas delays those of others, never their tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use mainstay_engine_abi::sdk::{EngineError, Finish, Request};

use super::{Command, Shared};
use crate::guided::{Compiler, Guide};

/// The library descends by recursion; what bounds its depth is in the compiler's limits.
const STACK_BYTES: usize = 64 << 20;

pub(super) fn spawn(
    compiler: Compiler,
    shared: Arc<Shared>,
) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new()
        .name("native-forms".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || run(compiler, &shared))
        .map_err(|e| EngineError::internal(format!("no thread for forms: {e}")))
}

fn run(mut compiler: Compiler, shared: &Shared) {
    while let Some(request) = take(shared) {
        let made = catch_unwind(AssertUnwindSafe(|| guide(&mut compiler, &request)));
        let made = made.unwrap_or_else(|_| {
            Err(EngineError::invalid("the form cannot be compiled; simplify it"))
        });
        pass_on(shared, request, made);
    }
}

/// The next request; nothing when the engine ends.
fn take(shared: &Shared) -> Option<Request> {
    let mut inbox = shared.lock();
    loop {
        if inbox.stopping || inbox.dead {
            return None;
        }
        if let Some(request) = inbox.forms.pop_front() {
            let wanted = inbox.live.get(&request.id).is_some_and(|live| !live.cancelled);
            if wanted {
                return Some(request);
            }
            inbox.commands.push_back(Command::Refuse(request.id, Finish::Cancelled));
            shared.bell.notify_one();
            continue;
        }
        inbox = shared.forms_bell.wait(inbox).unwrap_or_else(PoisonError::into_inner);
    }
}

fn guide(compiler: &mut Compiler, request: &Request) -> Result<Option<Box<Guide>>, EngineError> {
    let Some(form) = &request.guided else { return Ok(None) };
    let before = request.tokens.len().saturating_sub(request.sampled_before as usize);
    compiler.guide(form, &request.tokens[before..]).map(|guide| Some(Box::new(guide)))
}

fn pass_on(shared: &Shared, request: Request, made: Result<Option<Box<Guide>>, EngineError>) {
    let mut inbox = shared.lock();
    // Under the lock: a cancel before this is seen here, one after it finds the request queued.
    let cancelled = inbox.live.get(&request.id).is_none_or(|live| live.cancelled);
    let command = match made {
        _ if cancelled => Command::Refuse(request.id, Finish::Cancelled),
        Ok(guide) => Command::Submit(Box::new(request), guide),
        Err(error) => {
            let finish = Finish::Error { rc: error.rc.rc(), message: error.message };
            Command::Refuse(request.id, finish)
        }
    };
    inbox.commands.push_back(command);
    drop(inbox);
    shared.bell.notify_one();
}
