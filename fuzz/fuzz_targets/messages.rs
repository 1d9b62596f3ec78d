//! Bodies of `/v1/messages`, and of its counting of tokens. The first byte holds flags, the rest is the body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainstay_chat::Endpoint;

fuzz_target!(|data: &[u8]| {
    let Some((flags, body)) = data.split_first() else { return };
    let endpoint = if flags & 1 == 0 { Endpoint::Messages } else { Endpoint::CountTokens };
    mainstay_fuzz::read(endpoint, *flags, body);
});
