//! A service at (or over) its limit shrinks a buffer that it, or someone else, owns.
use dogtag::Service;
#[global_allocator]
static A: dogtag::Dogtag = dogtag::Dogtag::new();
fn main() {
    let which = std::env::args().nth(1).unwrap_or_default();
    let s = Service::builder("svc").hard_limit(1 << 20).register().unwrap();
    match which.as_str() {
        // limit lowered below what is held; own block shrinks
        "lowered" => {
            let mut v: Vec<u8> = s.run(|| Vec::with_capacity(900_000));
            s.set_hard_limit(Some(100_000));
            v.extend_from_slice(&[1; 500_000]);
            println!("before {:?} limit {:?}", s.usage().bytes(), s.hard_limit());
            s.run(|| v.shrink_to_fit());
            println!("ok own: cap {} usage {} denied {}", v.capacity(), s.usage().bytes(), s.usage().denied);
        }
        // service is full; a block handed to it by another service is shrunk in it
        "foreign" => {
            let other = Service::register("other").unwrap();
            // Or the compiler leaves it out.
            let hold: Vec<u8> = std::hint::black_box(s.run(|| Vec::with_capacity((1 << 20) - 100)));
            let mut v: Vec<u8> = other.run(|| Vec::with_capacity(100_000));
            v.extend_from_slice(&[1; 50_000]);
            println!("before svc {} other {}", s.usage().bytes(), other.usage().bytes());
            let b = s.run(|| v.into_boxed_slice());
            println!(
                "ok foreign: len {} svc {} other {} denied {}",
                b.len(),
                s.usage().bytes(),
                other.usage().bytes(),
                s.usage().denied
            );
            drop(hold);
        }
        // shrink of own block where parent's limit has been lowered
        "parent" => {
            let c = Service::builder("child").parent(&s).register().unwrap();
            let mut v: Vec<u8> = c.run(|| Vec::with_capacity(900_000));
            v.extend_from_slice(&[1; 500_000]);
            s.set_hard_limit(Some(100_000));
            c.run(|| v.shrink_to_fit());
            println!(
                "ok parent: cap {} usage {} denied {}",
                v.capacity(),
                c.usage().bytes(),
                c.usage().denied
            );
        }
        // small blocks
        "small" => {
            let mut v: Vec<u8> = s.run(|| Vec::with_capacity(3000));
            v.extend_from_slice(&[1; 1500]);
            s.set_hard_limit(Some(0));
            s.run(|| v.shrink_to_fit());
            println!(
                "ok small: cap {} usage {} denied {}",
                v.capacity(),
                s.usage().bytes(),
                s.usage().denied
            );
        }
        // over the limit, format! of nothing big but String -> Box<str> by child
        "unattributed_to_full" => {
            let hold: Vec<u8> = std::hint::black_box(s.run(|| Vec::with_capacity((1 << 20) - 8)));
            let mut st = String::with_capacity(200);
            st.push_str("0123456789abcdef0123");
            let b = s.run(|| st.into_boxed_str());
            println!("ok u2f: {} usage {} denied {}", b.len(), s.usage().bytes(), s.usage().denied);
            drop(hold);
        }
        // growth: is the old block counted on top of the new one?
        "grow" => {
            let mut v: Vec<u8> = s.run(|| Vec::with_capacity(600_000));
            let r = s.run(|| v.try_reserve_exact(1_000_000));
            println!(
                "grow in place of itself: {:?} usage {} denied {}",
                r,
                s.usage().bytes(),
                s.usage().denied
            );
            let r = s.run(|| v.try_reserve_exact(1_048_577));
            println!("past: {:?} usage {} denied {}", r.is_err(), s.usage().bytes(), s.usage().denied);
        }
        // denied requests leave nothing behind
        "rollback" => {
            let mut keep: Vec<Vec<u8>> = vec![];
            for _ in 0..1000 {
                let mut v: Vec<u8> = Vec::new();
                assert!(s.run(|| v.try_reserve_exact(2 << 20)).is_err());
            }
            for _ in 0..1000 {
                let v: Vec<u8> = s.run(|| Vec::with_capacity(1000));
                keep.push(v);
            }
            let mut v = keep.pop().unwrap();
            for _ in 0..1000 {
                assert!(s.run(|| v.try_reserve_exact(2 << 20)).is_err());
            }
            println!(
                "rollback: usage {} (want {}) denied {} headroom {:?}",
                s.usage().bytes(),
                1000_000,
                s.usage().denied,
                s.headroom()
            );
            drop(v);
            keep.clear();
            println!("rollback: after free {} headroom {:?}", s.usage().bytes(), s.headroom());
        }
        _ => {}
    }
}
