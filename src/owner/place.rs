//! Where the owners of an allocator's blocks stand, as a type.

/// Says where a [`Dogtag`](crate::Dogtag) keeps the owners of its blocks: [`Cookies`] or [`OwnerTable`].
///
/// It is chosen by type, in the program's one static, so that the choice costs nothing while the program
/// runs. No other type can implement it.
pub trait OwnerPlace: sealed::Sealed {
    #[doc(hidden)]
    const IS_TABLE: bool;
}

/// Keeps the owner of a block behind it: the default.
///
/// It costs the same whoever allocates next to whom, and an overwritten cookie is noticed when the
/// block is freed. [`Dogtag::with_owner_table`](crate::Dogtag::with_owner_table) says what is better with a table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cookies(());

/// Keeps the owners of blocks in a table by the page: for
/// [`Dogtag::with_owner_table`](crate::Dogtag::with_owner_table).
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnerTable(());

impl OwnerPlace for Cookies {
    const IS_TABLE: bool = false;
}

impl OwnerPlace for OwnerTable {
    const IS_TABLE: bool = true;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Cookies {}
    impl Sealed for super::OwnerTable {}
}
