//! A region used as a plain GlobalAlloc (its documented "counted by whoever uses it, if at all"): what does the balance say?
use std::alloc::{GlobalAlloc, Layout};
#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
fn main() {
    let heap = vec![1u8; 200 << 20];
    let region = dogtag_mapped::MappedRegion::anonymous(128 << 20).unwrap();
    println!("{}", dogtag::balance());
    let l = Layout::from_size_align(100 << 20, 16).unwrap();
    let p = unsafe { region.alloc(l) };
    unsafe { p.write_bytes(1, 100 << 20) };
    println!("{}", dogtag::balance());
    unsafe { region.dealloc(p, l) };
    drop(heap);
}
