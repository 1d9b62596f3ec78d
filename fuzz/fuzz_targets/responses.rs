//! Bodies of `/v1/responses`. The first byte holds flags, the rest is the body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainstay_chat::Endpoint;

fuzz_target!(|data: &[u8]| {
    let Some((flags, body)) = data.split_first() else { return };
    mainstay_fuzz::read(Endpoint::Responses, *flags, body);
});
