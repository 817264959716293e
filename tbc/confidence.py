"""The confidence gate: an agent that has its answer spends no more."""

from __future__ import annotations

from tbc.contract import BudgetContract, check_fraction

__all__ = ["ConfidenceGate"]


class ConfidenceGate:
    """Refuses further spending by an agent whose confidence reached its threshold."""

    @staticmethod
    def allow_further_retrieval(contract: BudgetContract, confidence: float | None) -> bool:
        """Return whether the agent may go on.

        Parameters
        ----------
        contract : BudgetContract
            Its terms.
        confidence : float or None
            Its last confidence, 0 to 1; ``None`` if it never reported one.

        Returns
        -------
        bool
            ``False`` only if there is a threshold and ``confidence >= threshold``.

        Raises
        ------
        InvalidAmountError
            If the confidence is not between 0 and 1 (NaN included).

        Examples
        --------
        >>> contract = BudgetContract("searcher", confidence_threshold=0.9)
        >>> ConfidenceGate.allow_further_retrieval(contract, 0.89)
        True
        >>> ConfidenceGate.allow_further_retrieval(contract, 0.9)
        False
        """
        if confidence is None or contract.confidence_threshold is None:
            return True
        return check_fraction("confidence", confidence) < contract.confidence_threshold
