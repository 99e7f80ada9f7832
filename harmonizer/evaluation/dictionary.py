"""Data dictionary of ``group_statistics.tsv``: the meaning of every number."""

from __future__ import annotations

from .table import Measure

__all__ = ["TEST_DESCRIPTIONS"]

_NAKAGAWA = "Nakagawa and Schielzeth 2013, doi:10.1111/j.2041-210x.2012.00261.x"
_SHROUT = "Shrout and Fleiss 1979, doi:10.1037/0033-2909.86.2.420"

TEST_DESCRIPTIONS: dict[str, Measure] = {
    "traveling_pair": Measure(
        "Mean over traveling subjects of the mean over their ordered pairs of sites of the measure "
        "that `reference` names; compared with the unharmonized image if the second site is the "
        "target",
        "as the measure", "as the measure", "as the measure"),
    "traveling_wilcoxon": Measure(
        "Median over traveling subjects of the change of the measure against what `reference` "
        "names: measure | other method, measure | unharmonized or measure | rescaled",
        "as the measure", "as the measure", "any", "Wilcoxon 1945, doi:10.2307/3001968"),
    "icc31": Measure(
        "Intraclass correlation ICC(3,1) of the feature that `reference` names, subjects by sites: "
        "(MS_subjects - MS_error) / (MS_subjects + (k - 1) MS_error); offsets between sites do not "
        "lower it", "1", "higher", "-1/(k-1) to 1", _SHROUT),
    "icc21": Measure(
        "Intraclass correlation ICC(2,1) of the feature: absolute agreement, offsets between "
        "sites lower it", "1", "higher", "-1 to 1", _SHROUT),
    "within_subject_cov": Measure(
        "Within-subject coefficient of variation of the feature across sites: root mean square "
        "over subjects of standard deviation over mean",
        "%", "lower", "0 to infinity", "Quan and Shih 1996, doi:10.2307/2533000"),
    "identification": Measure(
        "Fraction of traveling subjects whose image at one site is most similar to their own, "
        "among all subjects, at another site (block fingerprints minus the mean of the site)",
        "1", "higher", "0 to 1; chance 1 / subjects", "Finn et al. 2015, doi:10.1038/nn.4135"),
    "identifiability": Measure(
        "Correlation of a subject's fingerprints at two sites minus the mean correlation with "
        "other subjects",
        "1", "higher", "-2 to 2", "Amico and Goni 2018, doi:10.1038/s41598-018-25089-1"),
    "own_to_others": Measure(
        "Distance (1 - correlation of fingerprints) to the subject's own image at another site "
        "over the mean distance to other subjects", "1", "lower", "0 to infinity"),
    "source_own_to_others": Measure(
        "Distance (1 - correlation of fingerprints) of a harmonized image to its source over the "
        "mean distance to the sources of other subjects", "1", "lower", "0 to infinity"),
    "identification_change": Measure(
        "Change of `identification` against linearly rescaled images", "1", "higher", "-1 to 1"),
    "own_to_others_change": Measure(
        "Change of `own_to_others` against linearly rescaled images", "1", "lower", "any"),
    "pair_error_change": Measure(
        "RMSE between two images of a traveling subject after harmonization over that after linear "
        "rescaling, minus 1", "1", "lower", "-1 to infinity"),
    "age_r2_loss": Measure(
        "Fraction of `age_r2` that is lost by harmonization: 1 - after / before; before is the "
        "linearly rescaled image if age cannot be predicted from the unharmonized one",
        "1", "lower", "-infinity to 1"),
    "effect_loss": Measure(
        "Fraction of the effect that `reference` names that is lost: 1 - after / before",
        "1", "lower", "any"),
    "annual_change": Measure(
        "Mean annual change of the feature within subjects, between visits at the same site or "
        "across sites, as `reference` names", "1/year", "none", "any"),
    "change_loss": Measure(
        "Fraction of the mean annual change at one site that is lost: 1 - after / before",
        "1", "lower", "any"),
    "subject_order": Measure(
        "Spearman correlation of a feature of traveling subjects between two sites, mean over "
        "pairs of sites", "1", "higher", "-1 to 1", "Spearman 1904, doi:10.2307/1412159"),
    "subject_order_change": Measure(
        "Change of `subject_order` against linearly rescaled images", "1", "higher", "-2 to 2"),
    "subject_order_within_site": Measure(
        "Spearman correlation of a feature before (linearly rescaled) and after, over the subjects "
        "of a site, mean over sites", "1", "higher", "-1 to 1"),
    "source_identification": Measure(
        "Fraction of harmonized images whose fingerprint is most similar to their own source, "
        "among all sources of the site", "1", "higher", "0 to 1; chance 1 / subjects",
        "Finn et al. 2015, doi:10.1038/nn.4135"),
    "source_identifiability": Measure(
        "Correlation of a harmonized image's fingerprint with its source minus the mean "
        "correlation with the sources of other subjects", "1", "higher", "-2 to 2",
        "Amico and Goni 2018, doi:10.1038/s41598-018-25089-1"),
    "anderson_darling": Measure(
        "K-sample Anderson-Darling statistic of the sites' mean intensity distributions, each "
        "sampled at 200 equal quantile levels; p by permutation of intensities",
        "1", "lower", "about -1.3 to infinity", "Scholz and Stephens 1987, doi:10.2307/2288805"),
    "distribution_distance": Measure(
        "Mean Wasserstein-1 distance between two sites' mean quantile functions over R; p by "
        "permutation of the site labels of subjects", "R", "lower", "0 to infinity"),
    "site_confounding": Measure(
        "Association of the variable that `reference` names with the site: eta squared of a "
        "number, Cramer's V of a category; the note says what it means for the other numbers",
        "1", "none", "0 to 1"),
    "distribution_excess": Measure(
        "Mean Wasserstein-1 distance between two sites beyond its mean under permutation, over the "
        "mean distance between two scans of a site; 0 without a site effect",
        "1", "lower", "-1 to infinity"),
    "site_f1_excess": Measure(
        "site_f1_retrained minus the mean of site_chance; 0 without a site effect",
        "1", "lower", "-1 to 1"),
    "site_variance": Measure(
        "Fraction of the variance of the feature that `reference` names that the site explains "
        "beyond age and sex (of traveling subjects, beyond the subject): additive site effect",
        "1", "lower", "0 to 1", "Steiger 2004, doi:10.1037/1082-989X.9.2.164"),
    "site_scale": Measure(
        "Largest over smallest standard deviation of the feature at a site, after age and sex: "
        "multiplicative site effect", "1", "lower", "1 to infinity",
        "Brown and Forsythe 1974, doi:10.1080/01621459.1974.10482955"),
    "covariates_variance": Measure(
        "Fraction of the variance of the feature that age and sex explain beyond the site",
        "1", "higher", "0 to 1"),
    "features_within_margin": Measure(
        "Fraction of the features whose site_variance lies below its margin with its interval",
        "1", "higher", "0 to 1"),
    "component_variance": Measure(
        "Fraction of the variance of all standardized features in a principal component", "1",
        "none", "0 to 1"),
    "component_site_variance": Measure(
        "site_variance of a principal component", "1", "lower", "0 to 1"),
    "component_age_correlation": Measure(
        "Correlation of a principal component with age", "1", "none", "-1 to 1"),
    "site_mahalanobis": Measure(
        "Mahalanobis distance between the means of two sites, in standard deviations between the "
        "subjects of a site, in the space of principal components", "1", "lower",
        "0 to infinity", "Mahalanobis 1936"),
    "site_f1_trained_on_raw": Measure(
        "Macro F1 of the original site, classifier trained on unharmonized images of other "
        "subjects and applied to harmonized ones", "1", "lower", "0 to 1", "CACD, Table 1"),
    "site_f1_retrained": Measure(
        "Macro F1 of the original site, classifier trained and tested on the same kind of images, "
        "other subjects: is any site information left?", "1", "lower", "0 to 1"),
    "site_chance": Measure(
        "Macro F1 of the same classifier if site labels are permuted: mean and 95 % interval",
        "1", "none", "0 to 1"),
    "target_fidelity": Measure(
        "Fraction of scans of other sites that the classifier trained on unharmonized images "
        "assigns to the target", "1", "higher", "0 to 1", "CACD, Table 1"),
    "marginal_r2": Measure(
        "Fraction of the variance of a tissue ratio that the site explains, site fixed and subject "
        "random: var_site / (var_site + var_subject + var_residual)",
        "1", "lower", "0 to 1", _NAKAGAWA),
    "conditional_r2": Measure(
        "Fraction of the variance that site and subject explain together: (var_site + var_subject) "
        "/ total. Good: marginal low and conditional high", "1", "higher", "0 to 1", _NAKAGAWA),
    "site_partial_eta_squared": Measure(
        "Fraction of the variance of a feature that the site explains beyond age and sex: SS_site "
        "/ (SS_site + SS_residual), type II. For subjects at one site each",
        "1", "lower", "0 to 1", "Cohen 1988, section 9.3"),
    "paired_t": Measure(
        "Mean difference of a tissue ratio between a site and the reference site, of the subjects "
        "who were at both", "1", "none", "any", "Student 1908"),
    "age_r2": Measure(
        "R2 = 1 - SSE / SST of age predicted by a regression fitted on the target site and tested "
        "on other subjects at other sites; below 0 it is worse than their mean age",
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
        "Effect of a covariate on a feature, which could not be estimated", "1", "none", "any"),
    "cohens_d": Measure(
        "Difference of a feature between the two groups of the covariate, adjusted for site and "
        "the other covariates, over the residual standard deviation", "1", "none", "any",
        "Cohen 1988, section 2.5"),
    "standardized_beta": Measure(
        "Slope of a feature on the covariate, both in standard deviations, adjusted for site and "
        "the other covariates", "1", "none", "any"),
    "partial_eta_squared": Measure(
        "Fraction of the variance of a feature that the groups of the covariate explain beyond "
        "site and the other covariates", "1", "none", "0 to 1", "Cohen 1988, section 9.3"),
    "combat": Measure(
        "ComBat on the features of the unharmonized images, which could not be fitted",
        "1", "none", "any", "Fortin et al. 2018, doi:10.1016/j.neuroimage.2017.11.024"),
    "anatomy_flagged": Measure(
        "Fraction of harmonized scans that exceed a limit of the anatomy guard",
        "1", "lower", "0 to 1"),
    "anatomy_limit": Measure(
        "Limit of the guard for the measure that `reference` names: the difference of two scans of "
        "one subject on one scanner", "as the measure", "none", "any"),
    "anatomy_measure": Measure(
        "Mean over scans of the measure that `reference` names, source against harmonized",
        "as the measure", "as the measure", "any"),
}
