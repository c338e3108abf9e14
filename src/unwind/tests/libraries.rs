//! Libraries that are opened and closed meanwhile.

use super::*;
use std::sync::atomic::AtomicU32;

/// A function that calls another one, in a frame of some size; as compiled with `flags`.
fn build(name: &str, frame: usize, flags: &[&str]) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("dogtag-unwind-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (source, library) = (folder.join("library.c"), folder.join(format!("lib{name}.so")));
    let code = format!(
        "static volatile char sink;
         void call(void (*function)(void *), void *argument) {{
             volatile char frame[{frame}];
             frame[0] = frame[{frame} - 1] = 1;
             function(argument);
             sink = frame[0];
         }}"
    );
    std::fs::write(&source, code).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O2"]).args(flags).arg("-o").arg(&library).arg(&source);
    assert!(cc.status().unwrap().success(), "{cc:?}");
    library
}

/// A library that is opened, until it is dropped.
struct Open {
    handle: *mut c_void,
    call: Call,
}

type Call = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void);

impl Open {
    fn new(library: &Path) -> Self {
        let path = CString::new(library.to_str().unwrap()).unwrap();
        // SAFETY: the library does nothing when it is opened, and its function is as above.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!handle.is_null());
            let call = libc::dlsym(handle, c"call".as_ptr());
            assert!(!call.is_null());
            Self { handle, call: std::mem::transmute::<*mut c_void, Call>(call) }
        }
    }

    #[inline(never)]
    fn stack(&self) -> Both {
        extern "C" fn take(argument: *mut c_void) {
            // SAFETY: the place below.
            unsafe { *argument.cast::<Both>() = Both::take() };
        }
        let mut both = Both::default();
        // SAFETY: the function calls the other one.
        unsafe { (self.call)(take, (&raw mut both).cast()) };
        both
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: from `dlopen`.
        unsafe { libc::dlclose(self.handle) };
    }
}

#[test]
fn a_new_library_is_known_after_the_next_look() {
    prepare();
    let library = build("late", 100, &[]);
    let open = Open::new(&library);
    let before = open.stack();
    // As far as `take`, whose caller is in the library.
    assert!(before.common() >= 1 || before.ours.len() >= 2);
    refresh_if_needed();
    open.stack().assert_same();
}

#[test]
fn another_library_at_the_same_address_has_its_own_stacks() {
    prepare();
    let (first, second) = (build("one", 100, &[]), build("two", 3000, &[]));
    // Until the system gives the second one the first one's place: other threads may take it now and then.
    let have_met = (0..10_000).any(|_| {
        let mut addresses = Vec::new();
        for library in [&first, &second] {
            let open = Open::new(library);
            refresh_if_needed();
            open.stack().assert_same();
            addresses.push(open.call as usize);
        }
        addresses[0] == addresses[1]
    });
    assert!(have_met, "never was one where the other had been");
}

#[test]
fn libraries_come_and_go_meanwhile() {
    prepare();
    let (first, second) = (build("here", 100, &[]), build("there", 3000, &[]));
    let stop = AtomicBool::new(false);
    let stays = Open::new(&first);
    refresh_if_needed();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..300 {
                let open = Open::new(&second);
                // Mostly unknown yet, or something else was known there.
                assert!(open.stack().ours.len() >= 2);
            }
            stop.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                refresh_if_needed();
            }
        });
        let stays = &stays;
        let address = stays.call as usize;
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                Both::take().assert_same();
            }
        });
        let again = Open::new(&first);
        assert_eq!(again.call as usize, address);
        while !stop.load(Ordering::Relaxed) {
            again.stack().assert_same();
        }
    });
}

#[test]
fn code_without_tables_goes_on_by_frame_pointers_or_ends() {
    prepare();
    let without = ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];
    let with_pointer = build("pointer", 100, &[&without[..], &["-fno-omit-frame-pointer"]].concat());
    let without_any = build("bare", 100, &[&without[..], &["-fomit-frame-pointer"]].concat());

    let open = Open::new(&with_pointer);
    refresh_if_needed();
    let names = names(&open.stack().ours);
    assert!(names.iter().any(|name| name.contains("code_without_tables")), "{names:#?}");
    let open = Open::new(&without_any);
    refresh_if_needed();
    assert!(open.stack().ours.len() >= 2);
}
