//! The next turn's prompt, computed before it comes: what `agent_hints.speculative_prefill` asks for.
//!
//! An answer is known before its client has read it, and the next turn will begin with it, written as the template
//! writes history, which need not be how it was sampled. So the history with the answer is rendered without the opening
//! of a next turn, and computed where the answer was, below all that anybody waits for. What finds no room or no
//! quota, or whose worker has work waiting, is dropped and counted; the turn that comes ends it.

use std::sync::Arc;
use std::time::Duration;

use mainstay_chat::template::RenderOptions;
use mainstay_chat::{Finish, Request, Role, Transcript};
use mainstay_proto::convert::u128_to_wire;
use mainstay_proto::v1;
use mainstay_types::{SequenceHash, TenantId};

use super::Turn;
use super::read::compute;
use crate::http::App;
use crate::model::ModelCard;
use crate::prompt::{self, Prompt, options_of};
use crate::retention::{HOLD_MS, Place, WORTH};
use crate::workers::WorkerEntry;

/// Below everything that a client may ask for.
const PRIORITY: i32 = i32::MIN / 2;
/// How long it may take, waiting included.
const PATIENCE: Duration = Duration::from_secs(60);
/// Workers tell their loads every 50 ms: what was heard last may be of the answer that has just ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOKS_MAX: usize = 8;
/// Tokens that a history may differ by from what was computed, beside the answer: how a template closes a turn.
const SLACK_TOKENS: u64 = 256;

/// What became of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Computed,
    /// All of it was there.
    Nothing,
    /// The next prompt begins otherwise than this one, so that more than the answer would have to be computed.
    Diverged,
    /// The worker has others to compute for.
    Busy,
    /// Too many are under way.
    Crowded,
    /// The tenant may use no more tokens now.
    Quota,
    CalledOff,
    Late,
    Failed,
}

impl Ended {
    const fn name(self) -> &'static str {
        match self {
            Self::Computed => "computed",
            Self::Nothing => "nothing",
            Self::Diverged => "diverged",
            Self::Busy => "busy",
            Self::Crowded => "crowded",
            Self::Quota => "quota",
            Self::CalledOff => "called_off",
            Self::Late => "late",
            Self::Failed => "failed",
        }
    }
}

fn count(ended: Ended) {
    metrics::counter!("mainstay_gateway_speculative_prefills_total", "ended" => ended.name())
        .increment(1);
}

/// A turn that may come.
struct Next {
    app: App,
    request: Arc<Request>,
    tenant: TenantId,
    card: Arc<ModelCard>,
    /// Whose worker has computed the blocks before.
    request_id: String,
    blocks: Arc<[SequenceHash]>,
    answer_tokens: u64,
}

/// Begins with what is known of the next turn, where the request asks for it.
pub(super) fn warm_next(
    app: &App,
    turn: &Turn,
    transcript: &Transcript,
    finish: &Finish,
    answer_tokens: u64,
) {
    let request = &turn.request;
    if !request.hints.speculative_prefill
        || matches!(finish, Finish::Error(_) | Finish::Cancelled)
        || request.continue_final
        || transcript.items().is_empty()
    {
        return;
    }
    let Some(place) = app.retainer.warmup(&turn.tenant, request.session.key()) else {
        return count(Ended::Crowded);
    };
    if turn.spending.prompt(answer_tokens).is_err() {
        return count(Ended::Quota);
    }
    let mut request = request.clone();
    let answer = transcript.blocks(request.endpoint, &turn.request_id);
    request.conversation.push(Role::Assistant, answer);
    let next = Next {
        app: app.clone(),
        request: Arc::new(request),
        tenant: turn.tenant.clone(),
        card: Arc::clone(&turn.card),
        request_id: turn.request_id.clone(),
        blocks: Arc::clone(&turn.prompt.blocks),
        answer_tokens,
    };
    tokio::spawn(async move { count(next.run(place).await) });
}

impl Next {
    async fn run(self, place: Place) -> Ended {
        let place = Arc::new(place);
        let warmed = tokio::time::timeout(PATIENCE, self.warm(Arc::clone(&place)));
        tokio::select! {
            biased;
            () = place.called_off() => Ended::CalledOff,
            ended = warmed => ended.unwrap_or(Ended::Late),
        }
    }

    async fn warm(self, place: Arc<Place>) -> Ended {
        // Before the work of rendering, too: a gateway under load has none to give away.
        if self.idle_worker().await.is_none() {
            return Ended::Busy;
        }
        let Some(key) = self.app.replica.read(mainstay_state::Machine::hash_key) else {
            return Ended::Failed;
        };
        let (request, tenant) = (Arc::clone(&self.request), self.tenant.clone());
        let card = Arc::clone(&self.card);
        let render = move || {
            // A thread can't be called off, so its work keeps the place for as long as it takes.
            let _place = place;
            let options =
                RenderOptions { add_generation_prompt: false, ..options_of(&request, &tenant) };
            prompt::prepare(&request, options, &card, &tenant, key)
        };
        let Ok(prompt) = compute(usize::MAX, render).await else { return Ended::Failed };
        let common = common(&self.blocks, &prompt.blocks);
        match worth_it(&prompt, common, self.answer_tokens, self.card.context_tokens_max) {
            Ended::Computed => {}
            ended => return ended,
        }
        let Some(worker) = self.idle_worker().await else { return Ended::Busy };
        generate(&worker, &prompt, common).await
    }

    /// [`Self::worker`], once it has had time to say that the answer itself is over.
    async fn idle_worker(&self) -> Option<Arc<WorkerEntry>> {
        for _ in 1..LOOKS_MAX {
            if let Some(worker) = self.worker() {
                return Some(worker);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.worker()
    }

    /// The worker that gave the answer, if nobody waits there.
    fn worker(&self) -> Option<Arc<WorkerEntry>> {
        let worker = self.app.placement.worker_of(&self.request_id)?;
        let worker = self.app.workers.get(worker)?;
        let (load, _) = worker.load();
        (worker.routable() && load.waiting == 0 && load.waiting_prefill_tokens == 0)
            .then_some(worker)
    }
}

/// How many leading blocks two prompts share.
fn common<T: PartialEq>(one: &[T], other: &[T]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// Whether computing a prompt adds what the next turn needs, and not much more.
fn worth_it(prompt: &Prompt, common: usize, answer_tokens: u64, context_tokens_max: u32) -> Ended {
    let fresh = (prompt.blocks.len() - common) as u64 * u64::from(prompt.block_tokens);
    match fresh {
        0 => Ended::Nothing,
        _ if fresh > answer_tokens + SLACK_TOKENS => Ended::Diverged,
        _ if prompt.tokens >= context_tokens_max as usize => Ended::Nothing,
        _ => Ended::Computed,
    }
}

/// Has a prompt computed, and throws the one token away that comes of it.
async fn generate(worker: &WorkerEntry, prompt: &Prompt, common: usize) -> Ended {
    let start = u32::try_from(common).unwrap_or(u32::MAX).saturating_mul(prompt.block_tokens);
    let kept = v1::RetentionRange {
        start,
        end: u32::MAX,
        priority: WORTH,
        duration_ms: HOLD_MS,
        ..v1::RetentionRange::default()
    };
    let sampling = v1::Sampling {
        top_p: 1.0,
        repetition_penalty: 1.0,
        tokens_max: 1,
        ignore_eos: true,
        ..v1::Sampling::default()
    };
    let request = v1::GenerateRequest {
        namespace: u128_to_wire(prompt.namespace.0),
        tokens: prompt.packed.clone(),
        priority: PRIORITY,
        sampling: Some(sampling),
        ranges: vec![kept],
        expected_output_tokens: 1,
        epoch: worker.epoch.0,
        ..v1::GenerateRequest::default()
    };
    let mut client = worker.client.clone();
    let Ok(reply) = client.generate(request).await else { return Ended::Busy };
    let mut events = reply.into_inner();
    let mut ended = Ended::Failed;
    while let Ok(Some(event)) = events.message().await {
        if matches!(event.finish(), v1::Finish::Length | v1::Finish::Stop) {
            ended = Ended::Computed;
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_is_computed_ahead_and_no_other_history() {
        assert_eq!(common(&[1, 2, 3], &[1, 2, 4, 5]), 2);
        assert_eq!(common::<u8>(&[], &[1]), 0);
        let prompt = |blocks: usize| Prompt::of_blocks(blocks, 16);
        let worth = |blocks, common, answer| worth_it(&prompt(blocks), common, answer, 4_096);
        assert_eq!(worth(12, 10, 40), Ended::Computed);
        assert_eq!(worth(10, 10, 40), Ended::Nothing);
        // Tools that came between, or thoughts that the template leaves out of history.
        assert_eq!(worth(40, 2, 40), Ended::Diverged);
        assert_eq!(worth(256, 250, 4_000), Ended::Nothing, "there is no room for a next turn");
    }
}
