//! The thread that compiles forms.
//!
//! A schema may take as long as a hundred steps to compile, and the first one waits for the vocabulary
//! too; requests without a form shall not notice. One at a time, in the order they came: a client that
//! sends costly schemas delays those of others, never their tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use mainstay_engine_abi::sdk::{EngineError, Finish, Request};
use mainstay_engine_shell::Door;

use crate::guided::{Compiler, Guide};
use crate::scheduler::Scheduler;

/// The library descends by recursion; what bounds its depth is in the compiler's limits.
const STACK_BYTES: usize = 64 << 20;

/// Requests whose form is not compiled yet, and the thread. Those requests are among the live ones, so bounded with them.
pub(super) struct Forms {
    queue: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Forms {
    pub(super) fn open(
        compiler: Compiler,
        door: Arc<Door<Scheduler>>,
    ) -> Result<Self, EngineError> {
        let (queue, requests) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("native-forms".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || run(compiler, &requests, &door))
            .map_err(|e| EngineError::internal(format!("no thread for forms: {e}")))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Takes a request that was announced at the door.
    pub(super) fn push(&self, request: Request) {
        if let Some(queue) = &self.queue {
            // The thread lives as long as this.
            let _ = queue.send(request);
        }
    }
}

impl Drop for Forms {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // Its panics are caught inside; there is nothing more to learn from it.
            let _ = thread.join();
        }
    }
}

fn run(mut compiler: Compiler, requests: &mpsc::Receiver<Request>, door: &Door<Scheduler>) {
    while let Ok(request) = requests.recv() {
        if !door.is_wanted(request.id) {
            door.end(request.id, Finish::Cancelled);
            continue;
        }
        let made = catch_unwind(AssertUnwindSafe(|| guide(&mut compiler, &request)));
        let made = made.unwrap_or_else(|_| {
            Err(EngineError::invalid("the form cannot be compiled; simplify it"))
        });
        let id = request.id;
        match made {
            Ok(guide) => {
                door.hand_in(id, |work, now_us| work.submit_guided(request, guide, now_us))
            }
            Err(EngineError { rc, message, .. }) => {
                door.end(id, Finish::Error { rc: rc.rc(), message });
            }
        }
    }
}

fn guide(compiler: &mut Compiler, request: &Request) -> Result<Option<Guide>, EngineError> {
    let Some(form) = &request.guided else { return Ok(None) };
    let before = request.tokens.len().saturating_sub(request.sampled_before as usize);
    compiler.guide(form, &request.tokens[before..]).map(Some)
}
