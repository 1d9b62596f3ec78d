//! What a log says before and after its version is raised.

use mainstay_types::{Command, ErrorCode, JoinRole, KeyId, PinId, PinRequest, PinScope, PinState};
use mainstay_types::{LogIndex, Proposal, Region, Stamp, TenantId};
use proptest::prelude::*;

use super::*;
use crate::testing::{
    Log, command, join, join_token, log, order, pin, prefix, put_key, put_tenant, register,
    register_in, report, small_limits, tokens,
};
use crate::{Machine, Outcome};

fn raise() -> Command {
    Command::RaiseVersion { version: VERSION_NEWEST }
}

fn kept(id: u128, scope: &str) -> PinRequest {
    PinRequest {
        tokens: Some(tokens(3)),
        scope: PinScope::parse(scope).expect("a scope"),
        ..pin(id, prefix(0, 3))
    }
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { code: ErrorCode::FailedPrecondition, message }
        if message.contains("version 4"))
}

#[test]
fn commands_that_older_members_can_not_read_are_refused_until_all_can() {
    let key = KeyId::new("k").expect("a name");
    let name = TenantId::new("acme").expect("a name");
    let newer = || {
        [
            put_tenant("acme", None),
            put_key("acme", "k", 1),
            Command::RemoveKey { tenant: name.clone(), key: key.clone() },
            Command::RemoveTenant { name: name.clone() },
            join_token("t", 2, JoinRole::Worker, None),
            join(2, JoinRole::Worker, "w", 3),
            Command::RemoveJoinToken { id: key.clone() },
            order(1, 1, 1),
        ]
    };
    let mut log = Log::old(small_limits());
    log.apply(register("a", 1));
    log.apply(Command::PutPin(pin(1, prefix(0, 3))));
    let before = log.machine.digest();
    for command in newer() {
        let refused = log.apply(command.clone());
        assert!(is_refused(&refused), "{command:?}: {refused:?}");
    }
    assert_eq!(log.machine.tenants().len() + log.machine.join_tokens().len(), 0);
    assert_ne!(log.machine.digest(), before, "the log has moved");
    assert_eq!(log.apply(raise()), Outcome::Raised { version: VERSION_NEWEST });
    assert_eq!(log.apply(raise()), Outcome::Raised { version: VERSION_NEWEST });
    for command in newer() {
        let outcome = log.apply(command.clone());
        assert!(!is_refused(&outcome), "{command:?}: {outcome:?}");
    }
}

#[test]
fn fields_that_older_members_do_not_see_are_left_out() {
    let mut log = Log::old(small_limits());
    log.apply(register_in("a", 1, "far"));
    log.apply(Command::PutPin(kept(1, "global")));
    let made = &log.machine.pin(PinId(1)).expect("it was made").request;
    assert_eq!((made.tokens.as_ref(), &made.scope), (None, &PinScope::default()));
    assert_eq!(log.machine.live_regions().collect::<Vec<_>>(), [&Region::default()]);
    log.apply(report(1, 1, 1, 3));
    assert_eq!(log.machine.pin(PinId(1)).expect("made").state, PinState::Active);

    log.apply(raise());
    log.apply(register_in("b", 1, "far"));
    assert_eq!(log.machine.live_regions().count(), 2);
    log.apply(Command::PutPin(PinRequest { owner: None, ..kept(2, "global") }));
    let made = &log.machine.pin(PinId(2)).expect("it was made").request;
    assert_eq!(made.tokens, Some(tokens(3)));
}

#[test]
fn a_retry_finds_its_pin_on_both_sides_of_the_raise() {
    let mut log = Log::old(small_limits());
    let request = kept(1, "region:far");
    let made = log.apply(Command::PutPin(request.clone()));
    assert!(matches!(made, Outcome::Pin { .. }), "{made:?}");
    assert_eq!(log.apply(Command::PutPin(request.clone())), made);
    log.apply(raise());
    assert_eq!(log.apply(Command::PutPin(request.clone())), made);
    // Of a pin that was made since, all of the request counts.
    log.apply(Command::PutPin(PinRequest { owner: None, ..pin(2, prefix(1, 3)) }));
    let other = PinRequest { owner: None, tokens: Some(tokens(3)), ..pin(2, prefix(1, 3)) };
    let refused = log.apply(Command::PutPin(other));
    assert!(matches!(refused, Outcome::Refused { code: ErrorCode::AlreadyExists, .. }));
    // Through an image, too.
    let image = log.machine.encode();
    log.machine = Machine::decode(&image, small_limits()).expect("its own image");
    assert_eq!(log.apply(Command::PutPin(request)), made);
}

#[test]
fn a_version_never_goes_back_and_never_past_what_is_known() {
    let mut log = Log::old(small_limits());
    assert_eq!(log.machine.version(), VERSION_OLDEST);
    for version in [VERSION_NEWEST + 1, u8::MAX] {
        let refused = log.apply(Command::RaiseVersion { version });
        assert!(matches!(refused, Outcome::Refused { code: ErrorCode::FailedPrecondition, .. }));
        assert_eq!(log.machine.version(), VERSION_OLDEST);
    }
    log.apply(raise());
    for version in [0, VERSION_OLDEST, VERSION_NEWEST] {
        let raised = log.apply(Command::RaiseVersion { version });
        assert_eq!(raised, Outcome::Raised { version: VERSION_NEWEST });
    }
}

#[test]
fn older_versions_take_as_many_workers_as_they_did() {
    assert_eq!(workers_max(VERSION_OLDEST, 8_192), 4_096);
    assert_eq!(workers_max(VERSION_OLDEST, 10), 10);
    assert_eq!(workers_max(VERSION_NEWEST, 8_192), 8_192);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the newer state is, a watcher of the older version can read an image of it.
    #[test]
    fn an_older_watcher_reads_every_state(log in log(120)) {
        let mut machine = crate::testing::machine(small_limits());
        for (at, proposal) in log.iter().enumerate() {
            machine.apply(LogIndex(at as u64 + 1), proposal);
        }
        for blocks in [true, false] {
            let image = machine.encode_for(VERSION_OLDEST, blocks);
            let read = Machine::decode(&image, small_limits()).expect("an image of ours");
            prop_assert_eq!(read.version(), VERSION_OLDEST);
            prop_assert_eq!(read.encode_for(VERSION_NEWEST, blocks), image);
            prop_assert!(read.pins().map(|p| p.request.id).eq(machine.pins().map(|p| p.request.id)));
            prop_assert!(read.pins().map(|p| &p.holders).eq(machine.pins().map(|p| &p.holders)));
            prop_assert!(read.pins().all(|p| p.request.tokens.is_none()));
        }
        prop_assert_eq!(machine.encode_for(u8::MAX, true), machine.encode_without_tokens());
    }

    /// What is fitted once is what the machine makes of it, and needs no more fitting.
    #[test]
    fn fitting_before_the_log_and_in_the_machine_is_one(
        log in log(60),
        command in command(),
    ) {
        let mut machine = Machine::new(small_limits());
        for (at, proposal) in log.iter().enumerate() {
            machine.apply(LogIndex(at as u64 + 1), proposal);
        }
        if let Ok(Some(fitted)) = fit(machine.version(), &command) {
            prop_assert_eq!(fit(machine.version(), &fitted), Ok(None));
            let index = machine.applied().next();
            let entry = |command| Proposal { stamp: Stamp::default(), command };
            let mut other = machine.clone();
            prop_assert_eq!(
                machine.apply(index, &entry(command)),
                other.apply(index, &entry(fitted))
            );
            prop_assert_eq!(machine.encode(), other.encode());
        }
    }
}
