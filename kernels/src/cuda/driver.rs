//! A GPU's memory and its stream of work, owned.
//!
//! Everything goes through one stream in the order of calls, so a buffer may be given back or written anew as soon as
//! the calls that use it were made: freeing waits for the device.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::probe::{Found, Unavailable, probe};

/// What the driver refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// No GPU to begin with.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Its memory is too small.
    #[error(
        "no room for {wanted} MiB in the GPU's memory ({free} MiB are free); lower `kv_bytes` or `step_tokens_max`"
    )]
    Memory {
        /// MiB asked for.
        wanted: usize,
        /// MiB left.
        free: usize,
    },
    /// Anything else.
    #[error("{what}: {code}")]
    Driver {
        /// What was being done.
        what: &'static str,
        /// The driver's name for what went wrong.
        code: String,
    },
}

/// The driver's name of an error.
pub(super) fn name_of(error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|_| format!("error {}", error.0 as u32))
}

fn failed(what: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver { what, code: name_of(error) }
}

/// Numbers that are the same bytes on both sides.
///
/// # Safety
/// Any bytes are a value, and there is no padding.
pub unsafe trait Plain: Copy + 'static {}
// SAFETY: integers and floats are.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: sixteen bits.
unsafe impl Plain for half::bf16 {}

/// A GPU and its stream.
pub struct Context {
    found: Found,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: the driver's handles may be used by any thread; each call makes the context current first.
unsafe impl Send for Context {}
// SAFETY: as above; the stream keeps the order of calls from several threads.
unsafe impl Sync for Context {}

impl Context {
    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// That there is none that will do, or what its driver says.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        let found = probe(ordinal)?;
        let opening = failed("opening the GPU");
        let number = i32::try_from(ordinal).expect("a device that was found has a small number");
        let device = result::device::get(number).map_err(&opening)?;
        // SAFETY: the device was found; what is retained is released once, in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(&opening)?;
        let mut open = Self { found, device, context, stream: std::ptr::null_mut() };
        open.bind()?;
        open.stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(&opening)?;
        Ok(Arc::new(open))
    }

    /// What was found.
    #[must_use]
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Bytes of memory that nobody has.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        self.bind()?;
        Ok(result::mem_get_info().map_err(failed("asking for free memory"))?.0)
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// What went wrong in any of it.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("computing"))
    }

    fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context was retained and not released.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("using the GPU"))
    }

    /// Loads PTX.
    pub(super) fn load(self: &Arc<Self>, ptx: &str) -> Result<Module, CudaError> {
        self.bind()?;
        let text = CString::new(ptx).expect("PTX has no zero bytes");
        // SAFETY: the text ends with a zero byte and is only read.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) };
        let module = module.map_err(failed("compiling kernels for the GPU"))?;
        Ok(Module { context: Arc::clone(self), module })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nothing can be done about a failure; the driver frees all of it with the process.
        let _ = self.bind();
        if !self.stream.is_null() {
            // SAFETY: it was created here; buffers hold the context, so nothing uses it any more.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
        // SAFETY: it was retained once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Loaded kernels.
pub(super) struct Module {
    context: Arc<Context>,
    module: sys::CUmodule,
}

// SAFETY: as for `Context`.
unsafe impl Send for Module {}
// SAFETY: as for `Context`.
unsafe impl Sync for Module {}

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct Function {
    handle: sys::CUfunction,
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

// SAFETY: a function is a handle into its module, whose owner keeps both.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// What a block may have without asking.
const SHARED_BYTES_FREE: u32 = 48 << 10;

impl Module {
    /// Finds a kernel whose blocks have so many threads and so much shared memory.
    pub(super) fn function(
        &self,
        name: &str,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<Function, CudaError> {
        self.context.bind()?;
        let text = CString::new(name).expect("names have no zero bytes");
        // SAFETY: the module is loaded.
        let handle = unsafe { result::module::get_function(self.module, text) };
        let handle = handle.map_err(failed("looking up a kernel"))?;
        if shared_bytes > SHARED_BYTES_FREE {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared_bytes).expect("shared memory is small");
            // SAFETY: the function belongs to the loaded module.
            unsafe { result::function::set_function_attribute(handle, attribute, bytes) }
                .map_err(failed("asking for shared memory"))?;
        }
        Ok(Function { handle, threads, shared_bytes })
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Puts a kernel into the stream.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in its order, and every address among them stays valid until the stream
    /// is behind this call.
    pub(super) unsafe fn launch(
        &self,
        function: Function,
        grid: (u32, u32),
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        self.context.bind()?;
        // SAFETY: what the caller promises.
        let launched = unsafe {
            result::launch_kernel(
                function.handle,
                (grid.0, grid.1, 1),
                (function.threads, 1, 1),
                function.shared_bytes,
                self.context.stream,
                arguments,
            )
        };
        launched.map_err(failed("launching a kernel"))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.wait();
        // SAFETY: it was loaded once, and nothing of it runs any more.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// Memory of a GPU.
pub struct Buffer {
    context: Arc<Context>,
    at: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    /// `bytes` bytes, which hold noise.
    ///
    /// # Errors
    /// That there is no such room.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        context.bind()?;
        // SAFETY: what is allocated is freed once, in `drop`.
        match unsafe { result::malloc_sync(bytes.max(16)) } {
            Ok(at) => Ok(Self { context: Arc::clone(context), at, bytes }),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let free = context.free_bytes().unwrap_or(0) >> 20;
                Err(CudaError::Memory { wanted: bytes.div_ceil(1 << 20), free })
            }
            Err(error) => Err(failed("taking memory")(error)),
        }
    }

    /// So many zero bytes.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let buffer = Self::new(context, bytes)?;
        if bytes > 0 {
            // SAFETY: the bytes are this buffer's.
            let set =
                unsafe { result::memset_d8_async(buffer.at, 0, buffer.bytes, context.stream) };
            set.map_err(failed("clearing memory"))?;
        }
        Ok(buffer)
    }

    /// Numbers that were on the host.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn from_slice<T: Plain>(context: &Arc<Context>, values: &[T]) -> Result<Self, CudaError> {
        let buffer = Self::new(context, size_of_val(values))?;
        buffer.upload(0, values)?;
        Ok(buffer)
    }

    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The GPU that has it.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn address(&self) -> u64 {
        self.at
    }

    /// The address of a part, once it is known to lie inside.
    ///
    /// # Panics
    /// When it does not.
    pub(super) fn part(&self, offset: usize, bytes: usize) -> u64 {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "a part must lie inside its buffer");
        self.at + offset as u64
    }

    /// Copies numbers to the GPU, `offset` bytes in. They may change as soon as this returns.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn upload<T: Plain>(&self, offset: usize, values: &[T]) -> Result<(), CudaError> {
        let to = self.part(offset, size_of_val(values));
        if values.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: source and target hold that many bytes. Of memory that is not pinned, as a slice of the caller's is,
        // the driver keeps a copy or has read it when it returns.
        let copied = unsafe { result::memcpy_htod_async(to, values, self.context.stream) };
        copied.map_err(failed("copying to the GPU"))
    }

    /// Copies numbers from the GPU, `offset` bytes in, once all work before is done.
    ///
    /// # Errors
    /// What the driver says, also of the work before.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn download<T: Plain>(&self, offset: usize, values: &mut [T]) -> Result<(), CudaError> {
        let from = self.part(offset, size_of_val(values));
        if values.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: as in `upload`, and the wait below ends before the borrow does.
        let copied = unsafe { result::memcpy_dtoh_async(values, from, self.context.stream) };
        let waited = self.context.wait();
        copied.map_err(failed("copying from the GPU"))?;
        waited
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: it was allocated once; freeing waits for work that uses it.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

/// Memory of the host that a GPU reads and writes at the full speed of its link.
pub struct HostBuffer<T: Plain> {
    context: Arc<Context>,
    at: *mut T,
    length: usize,
    owned: PhantomData<T>,
}

// SAFETY: it owns its memory.
unsafe impl<T: Plain + Send> Send for HostBuffer<T> {}

impl<T: Plain> HostBuffer<T> {
    /// Room for `length` numbers, zeroed.
    ///
    /// # Errors
    /// That there is none.
    pub fn new(context: &Arc<Context>, length: usize) -> Result<Self, CudaError> {
        context.bind()?;
        let bytes = (length * size_of::<T>()).max(16);
        // SAFETY: what is allocated is freed once, in `drop`; it is cleared before anybody reads it.
        let at =
            unsafe { result::malloc_host(bytes, 0) }.map_err(failed("taking pinned memory"))?;
        // SAFETY: so many bytes were given.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Self { context: Arc::clone(context), at: at.cast(), length, owned: PhantomData })
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `length` numbers were given and written; every copy into them is waited for.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.length) }
    }

    /// Fills the first `count` numbers from the GPU and waits for them.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When there are not so many on either side.
    pub fn fetch(&mut self, from: &Buffer, count: usize) -> Result<&mut [T], CudaError> {
        let values = &mut self.as_mut_slice()[..count];
        from.download(0, values)?;
        Ok(&mut self.as_mut_slice()[..count])
    }
}

impl<T: Plain> Drop for HostBuffer<T> {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: it was allocated once, and no copy is under way.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}
