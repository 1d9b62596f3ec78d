//! What regions add to the image: a worker's region and a pin's scope, both directions side by side.

use mainstay_types::{PinScope, Region};

use super::ImageError;
use super::sink::Sink;
use super::source::Source;

const SCOPE_REGION: u8 = 0;
const SCOPE_GLOBAL: u8 = 1;

pub(super) fn write_region(sink: &mut impl Sink, region: &Region) {
    sink.text(region.as_str());
}

pub(super) fn read_region(source: &mut Source<'_>) -> Result<Region, ImageError> {
    Region::new(source.text("region", Region::BYTES_MAX)?).ok_or(ImageError::Invalid("region"))
}

pub(super) fn write_scope(sink: &mut impl Sink, scope: &PinScope) {
    match scope {
        PinScope::Region(region) => {
            sink.u8(SCOPE_REGION);
            write_region(sink, region);
        }
        PinScope::Global => sink.u8(SCOPE_GLOBAL),
    }
}

pub(super) fn read_scope(source: &mut Source<'_>) -> Result<PinScope, ImageError> {
    match source.u8()? {
        SCOPE_REGION => read_region(source).map(PinScope::Region),
        SCOPE_GLOBAL => Ok(PinScope::Global),
        _ => Err(ImageError::Invalid("scope")),
    }
}
