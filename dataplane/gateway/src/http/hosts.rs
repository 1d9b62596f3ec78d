//! The names by which this gateway may be called while nobody is asked for a key.
//!
//! A page of any site may have its name resolve to this machine, and the browser then lets it read what is answered here
//! (DNS rebinding). An address can't be rebound, nor can a name that nobody can register; all others must be allowed by
//! the operator. With keys there is nothing to protect: such a page has none.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use mainstay_chat::{ApiError, ErrorKind};

use super::{App, failure, new_request_id, protocol_of};

/// Ends of names that no registry gives to anybody.
const OWN_ENDS: [&str; 4] = [".localhost", ".local", ".internal", ".home.arpa"];
/// What anybody may ask for where keys are asked for, too.
const OPEN_PATHS: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// Refuses a request that came by a name which may be somebody else's.
pub(super) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if let Err(error) = judged(&app, request.headers(), request.uri())
        && !OPEN_PATHS.contains(&path)
    {
        return failure(&error, protocol_of(path), &new_request_id());
    }
    next.run(request).await
}

fn judged(app: &App, headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
    // Browsers always say; who does not is none.
    let given = headers.get(header::HOST).map(|value| value.to_str().unwrap_or_default());
    let Some(authority) = uri.authority().map(|a| a.as_str()).or(given) else { return Ok(()) };
    let name = name_of(authority);
    if is_own(name) || app.hosts.iter().any(|host| host.eq_ignore_ascii_case(name)) {
        return Ok(());
    }
    if app.tenants.asks_for_keys()? {
        return Ok(());
    }
    let text = format!(
        "this gateway asks nobody for a key, so it answers to addresses and to names of its own alone, and {name:?} may be \
         anybody's; call it by its address, start it with --allow-host NAME, or give it keys"
    );
    Err(ApiError::new(ErrorKind::Permission, text).with_code("unknown_host"))
}

/// The name in `name:port`, an IPv6 address without its brackets.
fn name_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.rsplit_once(':').map_or(authority, |(name, _)| name)
}

/// Whether nobody else can have this name resolve to an address of this machine.
fn is_own(name: &str) -> bool {
    if name.parse::<IpAddr>().is_ok() || name.parse::<Ipv6Addr>().is_ok() {
        return true;
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    !name.is_empty() && (!name.contains('.') || OWN_ENDS.iter().any(|end| name.ends_with(end)))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use mainstay_types::{Command, Quota, TenantId};

    use super::*;
    use crate::testing;

    fn asked(app: &App, host: Option<&'static str>) -> Result<(), (ErrorKind, Option<String>)> {
        let named = host.map(|host| (header::HOST, HeaderValue::from_static(host)));
        let headers = HeaderMap::from_iter(named);
        judged(app, &headers, &Uri::from_static("/v1/models")).map_err(|e| (e.kind, e.code))
    }

    fn open(hosts: &[&str]) -> App {
        let mut config = testing::config(1);
        config.keys.clear();
        config.hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        testing::app_of(config).0
    }

    #[test]
    fn names_that_nobody_else_can_have_pass() {
        let own = [
            "127.0.0.1:8000",
            "10.1.2.3",
            "[::1]:8000",
            "[::1]",
            "localhost:8000",
            "LOCALHOST",
            "localhost.:80",
            "gateway:8000",
            "console.localhost",
            "gateway.mainstay-eu.svc.cluster.local:8000",
            "box.home.arpa",
            "g1.internal",
        ];
        for authority in own {
            assert!(is_own(name_of(authority)), "{authority}");
        }
        let others = [
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8000",
            "evil.example.:8000",
            "notlocalhost.com",
            "evillocal.com",
            "[evil.example]:80",
            "",
            ":8000",
        ];
        for authority in others {
            assert!(!is_own(name_of(authority)), "{authority}");
        }
    }

    #[tokio::test]
    async fn a_foreign_name_is_refused_until_it_is_allowed_or_keys_are_asked_for() {
        let refused = Err((ErrorKind::Permission, Some("unknown_host".to_owned())));
        let app = open(&[]);
        // Before the log is known there may be keys in it.
        assert_eq!(asked(&app, Some("evil.example")).unwrap_err().0, ErrorKind::Unavailable);
        app.replica.test_apply(Command::Tick);
        assert_eq!(asked(&app, Some("evil.example:8000")), refused);
        assert_eq!(asked(&app, Some("")), refused);
        for host in [None, Some("127.0.0.1:8000"), Some("localhost:8000")] {
            assert_eq!(asked(&app, host), Ok(()), "{host:?}");
        }
        let name = TenantId::new("acme").expect("a name");
        app.replica.test_apply(Command::PutTenant { name, quota: Quota::default() });
        assert_eq!(asked(&app, Some("evil.example")), Ok(()), "keys of the log are asked for");
        let allowed = open(&["gateway.example"]);
        allowed.replica.test_apply(Command::Tick);
        assert_eq!(asked(&allowed, Some("Gateway.Example:443")), Ok(()));
        assert_eq!(asked(&allowed, Some("evil.gateway.example")), refused);
        let (keyed, _stop) = testing::app(1);
        assert_eq!(asked(&keyed, Some("evil.example")), Ok(()), "keys of the file are asked for");
    }
}
