"""The dictionary of ``group_statistics.tsv``: what every number of the referee means."""

from __future__ import annotations

from .table import Measure

__all__ = ["TESTS"]

_NAKAGAWA = "Nakagawa and Schielzeth 2013, doi:10.1111/j.2041-210x.2012.00261.x"
_SHROUT = "Shrout and Fleiss 1979, doi:10.1037/0033-2909.86.2.420"

TESTS: dict[str, Measure] = {
    "travelling_pair": Measure(
        "Mean over travelling people of the mean over their ordered pairs of sites of the measure "
        "that `reference` names; to the target's own image where the second site is the target",
        "as the measure", "as the measure", "as the measure"),
    "travelling_wilcoxon": Measure(
        "Median over travelling people of the change of the measure against what `reference` "
        "names: measure | other method, measure | unharmonized or measure | rescaled",
        "as the measure", "as the measure", "any", "Wilcoxon 1945, doi:10.2307/3001968"),
    "icc31": Measure(
        "Intraclass correlation ICC(3,1) of the feature that `reference` names, people by sites: "
        "(MS_people - MS_error) / (MS_people + (k - 1) MS_error); offsets between sites do not "
        "lower it", "1", "higher", "-1/(k-1) to 1", _SHROUT),
    "icc21": Measure(
        "Intraclass correlation ICC(2,1) of the feature: absolute agreement, offsets between "
        "sites lower it", "1", "higher", "-1 to 1", _SHROUT),
    "within_subject_cov": Measure(
        "Within-subject coefficient of variation of the feature across sites: root mean square "
        "over people of standard deviation over mean",
        "%", "lower", "0 to infinity", "Quan and Shih 1996, doi:10.2307/2533000"),
    "identification": Measure(
        "Share of travelling people whose image at one site is most like their own, of all "
        "people's, at another site (block fingerprints freed of what a site's people share)",
        "1", "higher", "0 to 1; chance 1 / people", "Finn et al. 2015, doi:10.1038/nn.4135"),
    "identifiability": Measure(
        "Correlation of a person's fingerprints at two sites less the mean one with other people",
        "1", "higher", "-2 to 2", "Amico and Goni 2018, doi:10.1038/s41598-018-25089-1"),
    "source_identification": Measure(
        "Share of harmonized images whose fingerprint is most like their own source's, of all "
        "sources of the site", "1", "higher", "0 to 1; chance 1 / people",
        "Finn et al. 2015, doi:10.1038/nn.4135"),
    "source_identifiability": Measure(
        "Correlation of a harmonized image's fingerprint with its source's less the mean one with "
        "other people's sources", "1", "higher", "-2 to 2",
        "Amico and Goni 2018, doi:10.1038/s41598-018-25089-1"),
    "anderson_darling": Measure(
        "K-sample Anderson-Darling statistic of the sites' mean grey level distributions, each "
        "read at 200 equal quantile levels; p by permutation of grey levels",
        "1", "lower", "about -1.3 to infinity", "Scholz and Stephens 1987, doi:10.2307/2288805"),
    "distribution_distance": Measure(
        "Mean Wasserstein-1 distance between two sites' mean quantile functions over R; p by "
        "permutation of the site labels of people", "R", "lower", "0 to infinity"),
    "site_confounding": Measure(
        "How much of the variable that `reference` names goes with the site: eta squared of a "
        "number, Cramer's V of a category; the note says what it means for the other numbers",
        "1", "none", "0 to 1"),
    "site_f1_trained_on_raw": Measure(
        "Macro F1 of the original site, classifier trained on unharmonized images of other people "
        "and applied to harmonized ones", "1", "lower", "0 to 1", "CACD, Table 1"),
    "site_f1_retrained": Measure(
        "Macro F1 of the original site, classifier trained and tested on the same kind of images, "
        "other people: is any site information left?", "1", "lower", "0 to 1"),
    "site_chance": Measure(
        "Macro F1 of the same classifier when site labels are shuffled: mean, and the band that "
        "95 % of shuffles lie in", "1", "none", "0 to 1"),
    "target_fidelity": Measure(
        "Share of scans of other sites that the classifier trained on unharmonized images takes "
        "for the target's", "1", "higher", "0 to 1", "CACD, Table 1"),
    "marginal_r2": Measure(
        "Share of the variance of a tissue ratio that the site explains, site fixed and person "
        "random: var_fixed / (var_fixed + var_person + var_residual)",
        "1", "lower", "0 to 1", _NAKAGAWA),
    "conditional_r2": Measure(
        "Share of the variance that site and person explain together: (var_fixed + var_person) / "
        "total. Good: marginal low and conditional high", "1", "higher", "0 to 1", _NAKAGAWA),
    "site_partial_eta_squared": Measure(
        "Share of the variance of a feature that the site explains beyond age and sex: SS_site / "
        "(SS_site + SS_residual), type II. For people who were each at one site",
        "1", "lower", "0 to 1", "Cohen 1988, section 9.3"),
    "paired_t": Measure(
        "Mean difference of a tissue ratio between a site and the reference site on the people "
        "who were at both", "1", "none", "any", "Student 1908"),
    "age_r2": Measure(
        "R2 = 1 - SSE / SST of age predicted by a regression fitted on the target site and tested "
        "on other people at other sites; below 0 it is worse than their mean age",
        "1", "higher", "-infinity to 1", "CACD, section on age"),
    "age_mae": Measure("Mean absolute error of that prediction", "years", "lower",
                       "0 to infinity"),
    "age_interaction": Measure(
        "Difference of the slope of age on tissue volume between a site and the reference site, "
        "in years per standard deviation of the volume: age ~ volume x site",
        "years", "none", "any", "DISARM++"),
    "age_interaction_any": Measure(
        "Change of R2 when every site gets its own slope of age on tissue volume; p of the F test "
        "of all interactions", "1", "lower", "0 to 1", "DISARM++"),
    "age_rmse": Measure("Residual standard error of age ~ volume x site", "years", "lower",
                        "0 to infinity", "DISARM++"),
    "effect_size": Measure(
        "Effect of a covariate on a feature; of which kind depends on the covariate, and here it "
        "could not be given", "1", "none", "any"),
    "cohens_d": Measure(
        "Difference of a feature between the two groups of the covariate, adjusted for site and "
        "the other covariates, over the residual standard deviation", "1", "none", "any",
        "Cohen 1988, section 2.5"),
    "standardised_beta": Measure(
        "Slope of a feature on the covariate, both in standard deviations, adjusted for site and "
        "the other covariates", "1", "none", "any"),
    "partial_eta_squared": Measure(
        "Share of the variance of a feature that the groups of the covariate explain beyond site "
        "and the other covariates", "1", "none", "0 to 1", "Cohen 1988, section 9.3"),
    "combat": Measure(
        "ComBat on the features of the unharmonized images, which could not be fitted here",
        "1", "none", "any", "Fortin et al. 2018, doi:10.1016/j.neuroimage.2017.11.024"),
    "anatomy_flagged": Measure(
        "Share of harmonized scans that break the anatomy guard", "1", "lower", "0 to 1"),
    "anatomy_limit": Measure(
        "Limit of the guard for the measure that `reference` names: what two scans of one person "
        "on one scanner differ by", "as the measure", "none", "any"),
    "anatomy_measure": Measure(
        "Mean over people of the measure that `reference` names, source against harmonized",
        "as the measure", "as the measure", "any"),
}
