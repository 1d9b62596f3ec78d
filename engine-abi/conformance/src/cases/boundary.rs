//! The boundary itself: versions, growth of structs, refusals.

use mainstay_engine_abi::raw::{EXT_CRITICAL, MseExt, MseInfo, OK};
use mainstay_engine_abi::sdk::{Code, EngineError, Request, Sampling};
use mainstay_engine_host::kit;

use crate::driver::{self, Driver};
use crate::session::Session;
use crate::{Context, Ended, Stop};

pub(super) fn magic(context: &Context) -> Ended {
    let entry = context.subject.entry()?;
    let name = context.subject.name();
    let read = || kit::identity(&entry, &name).map_err(|error| error.to_string());
    let first = read()?;
    let vtable = driver::open(&context.subject)?;
    if read()? != first {
        return Err("the magic changed after open".to_owned().into());
    }
    drop(Driver::create_from(vtable, context.config_json.as_bytes())?);
    if read()? != first {
        return Err("the magic changed after create".to_owned().into());
    }
    Ok(vec![("engine".into(), format!("{} {} of {}", first.name, first.version, first.vendor))])
}

pub(super) fn slots(context: &Context) -> Ended {
    let driver = Driver::create(context)?;
    driver.check_slots()?;
    Ok(vec![("capabilities".into(), format!("{:#b}", driver.caps))])
}

pub(super) fn info(context: &Context) -> Ended {
    let driver = Driver::create(context)?;
    let info = &driver.info;
    for (name, value) in [
        ("block_tokens", info.block_tokens),
        ("vocab", info.vocab),
        ("context_tokens_max", info.context_tokens_max),
        ("requests_max", info.requests_max),
    ] {
        if value == 0 {
            return Err(format!("its {name} is 0").into());
        }
    }
    let (rc, again, _) = driver.info_raw(size_of::<MseInfo>());
    let same = (again.caps, again.blocks_total, again.vocab)
        == (driver.caps, info.blocks_total, info.vocab);
    if rc != OK || !same {
        return Err("info says something else the second time".to_owned().into());
    }
    Ok(vec![
        ("blocks".into(), format!("{} of {} tokens", info.blocks_total, info.block_tokens)),
        ("model".into(), info.model.clone()),
    ])
}

pub(super) fn short_info(context: &Context) -> Ended {
    let driver = Driver::create(context)?;
    // Up to and without `blocks_total`: what a caller of an earlier minor version may know.
    let known = std::mem::offset_of!(MseInfo, blocks_total);
    let (rc, info, err) = driver.info_raw(known);
    if rc != OK {
        let error = mainstay_engine_abi::read::read_error(rc, &err);
        return Err(format!("a caller that knows {known} bytes was refused: {error}").into());
    }
    let start = (&raw const info).cast::<u8>();
    // SAFETY: within the struct, whose bytes are all written.
    let tail =
        unsafe { std::slice::from_raw_parts(start.add(known), size_of::<MseInfo>() - known) };
    if tail.iter().any(|byte| *byte != 0xa5) {
        return Err(format!("info wrote beyond the caller's {known} bytes").into());
    }
    if info.h.size as usize != known || info.vocab != driver.info.vocab {
        return Err("info changed the header, or left out what the caller knows".to_owned().into());
    }
    Ok(Vec::new())
}

fn small(session: &mut Session) -> Request {
    let prompt = session.prompt(5);
    session.request(prompt, 2)
}

pub(super) fn long_request(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let request = small(&mut session);
    session.ledger.enter(&request);
    session
        .driver
        .submit_longer(&request, 0)
        .map_err(|error| format!("a longer request with a tail of zeroes was refused: {error}"))?;
    session.finish_all()?;
    let request = small(&mut session);
    refused(session.driver.submit_longer(&request, 1), "a tail that is not zero", &[Code::TooNew])?;
    Ok(Vec::new())
}

pub(super) fn extensions(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let node = |flags| MseExt {
        size: size_of::<MseExt>() as u32,
        r#type: 0x6b69_7400,
        flags,
        _reserved: 0,
        next: std::ptr::null(),
    };
    let (ignorable, critical) = (node(0), node(EXT_CRITICAL));
    let request = small(&mut session);
    session.ledger.enter(&request);
    session
        .driver
        .submit_raw(&request, |raw| raw.h.next = &raw const ignorable)
        .map_err(|error| format!("an unknown extension was not ignored: {error}"))?;
    session.finish_all()?;
    let request = small(&mut session);
    let result = session.driver.submit_raw(&request, |raw| raw.h.next = &raw const critical);
    refused(result, "an unknown critical extension", &[Code::TooNew])?;
    Ok(Vec::new())
}

const NEW_OR_WRONG: &[Code] = &[Code::TooNew, Code::Invalid];

pub(super) fn reserved(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let request = small(&mut session);
    let driver = &session.driver;
    let result = driver.submit_raw(&request, |raw| raw.h.flags = 1 << 31);
    refused(result, "an unknown flag of a header", NEW_OR_WRONG)?;
    let result = driver.submit_raw(&request, |raw| raw._reserved = 1);
    refused(result, "a reserved field of a request", NEW_OR_WRONG)?;
    let result = driver.submit_raw(&request, |raw| raw.h.size = 8);
    refused(result, "a header without its size", NEW_OR_WRONG)?;
    Ok(Vec::new())
}

pub(super) fn bad_config(context: &Context) -> Ended {
    let vtable = driver::open(&context.subject)?;
    drop(Driver::create_from(vtable, context.config_json.as_bytes())?);
    for (what, config) in [
        ("a cut JSON", b"{\"blocks\":".as_slice()),
        ("bytes that are no UTF-8", b"{\"a\":\"\xff\xfe\"}".as_slice()),
    ] {
        let (rc, engine, err) = driver::create_raw(&vtable, config);
        if rc == OK {
            // The engine is left to the end of this process: nobody knows what it made of that.
            return Err(format!("{what} was taken for a configuration").into());
        }
        if engine != driver::untouched() {
            return Err(format!("a create that failed at {what} wrote its out pointer (R3)").into());
        }
        if err.rc != rc || err.msg_len == 0 {
            return Err(format!("{what} is refused without a word in mse_err").into());
        }
    }
    // And it goes on after that.
    drop(Driver::create_from(vtable, context.config_json.as_bytes())?);
    Ok(Vec::new())
}

pub(super) fn bad_requests(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let info = session.info().clone();
    let sound = small(&mut session);
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = sound.clone();
        change(&mut request);
        request
    };
    let sampled = |sampling: Sampling| Request { sampling, ..sound.clone() };
    let over = info.context_tokens_max as usize + 1;
    for (what, request) in [
        ("no tokens", with(&|r| r.tokens.clear())),
        ("a token beyond the vocabulary", with(&|r| r.tokens[1] = info.vocab)),
        ("more tokens than the context has", with(&|r| r.tokens = vec![1; over])),
        ("tokens_max 0", sampled(Sampling { tokens_max: 0, ..Sampling::default() })),
        (
            "a temperature that is no number",
            sampled(Sampling { temperature: f32::NAN, ..Sampling::default() }),
        ),
        ("top_p 0", sampled(Sampling { top_p: 0.0, ..Sampling::default() })),
    ] {
        refused(session.driver.submit_raw(&request, |_| {}), what, &[Code::Invalid])?;
    }
    let result = session.driver.submit_raw(&sound, |raw| raw.sampling = std::ptr::null());
    refused(result, "no sampling", &[Code::Invalid])?;
    let result = session.driver.submit_raw(&sound, |raw| raw.tokens_len = 1 << 40);
    refused(result, "a length beyond the header's limit", &[Code::Invalid])?;
    session.settle()?;
    let prompt = session.prompt(4);
    session.tell(&prompt, 2)?;
    Ok(Vec::new())
}

pub(super) fn refused(
    result: Result<(), EngineError>,
    what: &str,
    codes: &[Code],
) -> Result<(), Stop> {
    match result {
        Ok(()) => Err(format!("{what} was taken").into()),
        Err(error) if !codes.contains(&error.rc) => {
            Err(format!("{what} was refused as {:?}, not as {codes:?}: {error}", error.rc).into())
        }
        Err(error) if error.message.is_empty() => {
            Err(format!("{what} was refused without a word").into())
        }
        Err(_) => Ok(()),
    }
}
