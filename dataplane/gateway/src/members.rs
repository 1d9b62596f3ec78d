//! Which control member this gateway follows: one of its own region while that one keeps up, else the nearest that does.
//!
//! Members say their region, how old what they know is, and who the others are, so that a gateway that was told of one
//! member finds its region's. A member that is cut off from the rest is better than none, and worse than any that is
//! not: a gateway leaves it once somebody fresher answers. So is a member of an older program, which is not asked how fresh
//! it is: while all members are upgraded, somebody has to be followed.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mainstay_proto::client::{Connector, MEMBERS_MAX, MESSAGE_BYTES_MAX};
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use mainstay_types::Region;
use parking_lot::Mutex;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long a member may take to say how fresh it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// A member that knows nothing newer is cut off, or far behind.
const STALE_MS: u64 = 5_000;
/// Between two looks for a better member than the one that is followed.
const LOOK_PACE: Duration = Duration::from_secs(5);

/// The members that this gateway knows.
pub(crate) struct Members {
    region: Region,
    connector: Connector,
    known: Mutex<Vec<Known>>,
}

#[derive(Clone)]
struct Known {
    address: String,
    client: ControlClient<Channel>,
}

/// A member that answered.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) client: ControlClient<Channel>,
    near: bool,
    stale: bool,
    took: Duration,
}

/// How good a member is; less is better.
type Class = (bool, bool);

impl Member {
    fn class(&self) -> Class {
        (self.stale, !self.near)
    }

    /// The class of this member when its followers are that old.
    fn class_at(&self, age_ms: Option<u64>) -> Class {
        (is_stale(age_ms), !self.near)
    }
}

/// Whether a member refuses a question because its program is older than the question.
fn is_older(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::PermissionDenied)
}

/// What a member of such a program amounts to: it serves a cluster without regions, and can't say how fresh it is.
fn older() -> v1::FreshnessReply {
    v1::FreshnessReply { region: Region::LOCAL.to_owned(), ..v1::FreshnessReply::default() }
}

fn is_stale(age_ms: Option<u64>) -> bool {
    age_ms.is_none_or(|age_ms| age_ms > STALE_MS)
}

impl Members {
    pub(crate) fn new(
        addresses: &[String],
        region: Region,
        connector: Connector,
    ) -> Result<Self, Status> {
        let members = Self { region, connector, known: Mutex::default() };
        for address in addresses {
            members.learn(address)?;
        }
        Ok(members)
    }

    /// Notes a member's address; beyond [`MEMBERS_MAX`] there are enough.
    fn learn(&self, address: &str) -> Result<(), Status> {
        let mut known = self.known.lock();
        if known.len() >= MEMBERS_MAX || known.iter().any(|k| k.address == address) {
            return Ok(());
        }
        let client = ControlClient::new((self.connector)(address)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        known.push(Known { address: address.to_owned(), client });
        Ok(())
    }

    /// The best member that answers, `avoided` only if nobody else does.
    pub(crate) async fn best(&self, avoided: Option<&str>) -> Option<Member> {
        let known = self.known.lock().clone();
        let asked = known.into_iter().map(|known| self.ask(known));
        let mut answers: FuturesUnordered<_> = asked.collect();
        let mut best: Option<Member> = None;
        let key = |m: &Member| (avoided == Some(m.address.as_str()), m.class(), m.took);
        while let Some(answer) = answers.next().await {
            let Some(member) = answer else { continue };
            if best.as_ref().is_none_or(|known| key(&member) < key(known)) {
                best = Some(member);
            }
            // Nobody can be of a better class; the rest need not be waited for.
            let done =
                |m: &Member| m.class() == (false, false) && avoided != Some(m.address.as_str());
            if best.as_ref().is_some_and(done) {
                break;
            }
        }
        best
    }

    async fn ask(&self, known: Known) -> Option<Member> {
        let asked = Instant::now();
        let mut client = known.client.clone();
        let answer = client.freshness(v1::FreshnessRequest {});
        let answer = match tokio::time::timeout(ASK_TIMEOUT, answer).await.ok()? {
            Ok(answer) => answer.into_inner(),
            Err(status) if is_older(&status) => older(),
            Err(_) => return None,
        };
        for address in &answer.members {
            // An address that makes no sense is its member's trouble.
            if let Err(status) = self.learn(address) {
                tracing::debug!(address, reason = status.message(), "a member's address is odd");
            }
        }
        Some(Member {
            address: known.address,
            client: known.client,
            near: answer.region == self.region.as_str(),
            stale: is_stale(answer.age_ms),
            took: asked.elapsed(),
        })
    }

    /// Resolves once a member answers that is better than `member` is for its followers.
    pub(crate) async fn better_than(&self, member: &Member, age_ms: impl Fn() -> Option<u64>) {
        loop {
            tokio::time::sleep(LOOK_PACE).await;
            let class = member.class_at(age_ms());
            if class == (false, false) {
                continue;
            }
            let best = self.best(None).await;
            if best.is_some_and(|best| best.class() < class && best.address != member.address) {
                return;
            }
        }
    }
}
