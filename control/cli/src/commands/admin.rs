//! How an operator reaches members: by an admin's certificate, by the admin token, or in plain text on one machine.
//!
//! A change that a member can't make because another one leads is sent on to that one; whatever else goes wrong is
//! told at once, since sending a change twice may answer something else the second time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mainstay_identity::{ClusterSecret, Guest, Role};
use mainstay_proto::client::{Connector, ControlPlane, channel, connector};
use mainstay_proto::v1::control_client::ControlClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::commands::addresses;
use crate::commands::identity::IdentityArgs;
use crate::output::{Failure, Format};

/// A new member has 20 s to catch up.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);
/// How long a leader is looked for.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Who asks.
#[derive(clap::Args)]
pub(crate) struct Credentials {
    #[command(flatten)]
    identity: IdentityArgs,
    /// A file with the admin token, in place of a certificate; MAINSTAY_ADMIN_TOKEN holds the token itself
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    admin_token_file: Option<PathBuf>,
    #[arg(long, hide = true, env = "MAINSTAY_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
}

/// Whom to ask, as whom, and how to print.
#[derive(clap::Args)]
pub(crate) struct AdminArgs {
    /// Members of the group, as HOST:PORT,…
    #[arg(long, env = "MAINSTAY_CONTROL", default_value = "127.0.0.1:7400")]
    control: String,
    #[command(flatten)]
    credentials: Credentials,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

impl AdminArgs {
    /// Asks one member after another until one can answer.
    pub(crate) async fn ask<T>(
        &self,
        ask: impl AsyncFn(ControlClient<Channel>, Pass) -> Result<Response<T>, Status>,
    ) -> anyhow::Result<T> {
        self.credentials.ask(&self.control, ask).await
    }
}

/// Shows the admin token with each call, where there is one.
#[derive(Clone)]
pub(crate) struct Pass(Option<MetadataValue<Ascii>>);

impl Pass {
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(bearer) = &self.0 {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        request
    }
}

impl Credentials {
    fn token(&self) -> anyhow::Result<Option<ClusterSecret>> {
        let text = match &self.admin_token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                Some(text.with_context(|| format!("reading the admin token {}", path.display()))?)
            }
            None => self.admin_token.clone().filter(|text| !text.is_empty()),
        };
        Ok(text.map(|text| text.parse()).transpose()?)
    }

    fn open(&self) -> anyhow::Result<(Connector, Pass)> {
        if let Some(identity) = self.identity.load(Role::Admin)? {
            let open = connector(move |to| identity.channel(to, Role::Control));
            return Ok((open, Pass(None)));
        }
        let Some(token) = self.token()? else { return Ok((Arc::new(channel), Pass(None))) };
        let guest = Guest::new(&token)?;
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", token.secret()).parse()?;
        bearer.set_sensitive(true);
        Ok((connector(move |to| guest.channel(to, Role::Control)), Pass(Some(bearer))))
    }

    /// A client of one member, whoever leads.
    pub(crate) fn client(&self, address: &str) -> anyhow::Result<(ControlClient<Channel>, Pass)> {
        let (open, pass) = self.open()?;
        let plane = ControlPlane::with_connector(&[address.to_owned()], open);
        Ok((plane.map_err(|s| failure(&s))?.current(), pass))
    }

    /// Asks one member after another until one can answer: the leader, for what only it can do.
    pub(crate) async fn ask<T>(
        &self,
        control: &str,
        ask: impl AsyncFn(ControlClient<Channel>, Pass) -> Result<Response<T>, Status>,
    ) -> anyhow::Result<T> {
        let (open, pass) = self.open()?;
        let plane =
            ControlPlane::with_connector(&addresses(control), open).map_err(|s| failure(&s))?;
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let asked = ask(plane.current(), pass.clone());
            let status = match tokio::time::timeout(ATTEMPT_MAX, asked).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(
                    "the change takes long and may still come; see `mainstay control members ls`",
                ),
            };
            if status.code() != Code::Unavailable || tokio::time::Instant::now() >= until {
                return Err(failure(&status).into());
            }
            plane.follow(&status);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A refusal with its exit code.
pub(crate) fn failure(status: &Status) -> Failure {
    let (hint, exit) = match status.code() {
        Code::NotFound => ("", 3),
        Code::Unavailable => ("; is a member running there? give --control HOST:PORT,…", 4),
        Code::DeadlineExceeded => ("", 4),
        Code::AlreadyExists | Code::FailedPrecondition => ("", 5),
        Code::PermissionDenied | Code::Unauthenticated => ("", 6),
        _ => ("", 1),
    };
    Failure { message: format!("{}{hint}", status.message()), exit }
}
